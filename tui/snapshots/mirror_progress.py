"""The progress of a mirror, accumulated from the lines of `redirty mirror --json-lines`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from redirty.collector.errors import one_line

_INTERRUPTED = 130


class Stage(Enum):
    """The stages of a mirror; the values are what the screen shows."""

    STARTING = "starting"
    COPYING = "copying"
    STOPPING = "target stopped"
    CANCELLING = "cancelling"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def finished(self) -> bool:
        """True if no other stage follows."""
        return self in (Stage.DONE, Stage.CANCELLED, Stage.FAILED)


@dataclass(frozen=True)
class FinishedPass:
    """A completed pass.

    Attributes:
        number: of the pass, from 1.
        pages: pages in it.
        sent_pages: pages sent with their contents.
        zero_pages: pages of zeros, which need not be sent.
        unchanged_pages: pages whose contents equal what was sent before.
        deferred_pages: pages deferred to the stop-and-copy pass.
        bytes: bytes sent.
        duration_s: duration of the pass.
        dirty_per_s: pages that the target wrote during the pass, per second; None for the last pass,
            during which the target was stopped.
        connection_lost: whether the connection was lost during the pass.
    """

    number: int
    pages: int
    sent_pages: int
    zero_pages: int
    unchanged_pages: int
    deferred_pages: int
    bytes: int
    duration_s: float
    dirty_per_s: float | None
    connection_lost: bool

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True)
class PassDecision:
    """A decision after a pass, or a note.

    Attributes:
        after_pass: number of the pass.
        action: the decision; empty for a note.
        reason: its reason, or the note's text.
    """

    after_pass: int
    action: str
    reason: str


@dataclass(frozen=True)
class RunningPass:
    """The pass in progress.

    Attributes:
        number: of the pass, from 1.
        pages: pages in it.
        done_pages: pages processed so far.
        rate: bytes per second.
        left_s: predicted time until the mirror is complete; None: unknown.
        downtime_s: predicted downtime; None: unknown.
    """

    number: int
    pages: int
    done_pages: int
    rate: float
    left_s: float | None = None
    downtime_s: float | None = None


@dataclass(frozen=True)
class MirrorProgress:
    """All that a mirror has reported so far.

    Attributes:
        stage: the current stage.
        passes: completed passes.
        decisions: decisions and notes, in order.
        running: the pass in progress; None between passes.
        result: contents of mirror.json; None until the mirror is complete.
    """

    stage: Stage = Stage.STARTING
    passes: tuple[FinishedPass, ...] = ()
    decisions: tuple[PassDecision, ...] = ()
    running: RunningPass | None = None
    result: Mapping[str, Any] | None = None

    def apply(self, event: Mapping[str, Any]) -> MirrorProgress:
        """Return the progress after one more line. Unknown events change nothing."""
        handler = _HANDLERS.get(str(event.get("event")))
        return self if handler is None else handler(self, event)

    def on_exit(self, code: int, last_line: str, *, cancelled: bool) -> tuple[MirrorProgress, str]:
        """Return the final progress and a message.

        Args:
            code: exit code of the process; negative: the signal that ended it.
            last_line: its last line on stderr.
            cancelled: cancellation was requested.
        """
        if code == 0 and self.result is not None:
            return replace(self, stage=Stage.DONE, running=None), ""
        if cancelled and code == _INTERRUPTED:
            return replace(self, stage=Stage.CANCELLED, running=None), (
                "cancelled: the target keeps running, the mirror was discarded"
            )
        text = one_line(last_line.strip()).removeprefix("redirty: ")
        if not text:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            text = (
                f"redirty mirror ended with {how}: the target keeps running, the mirror was "
                "discarded"
            )
        return replace(self, stage=Stage.FAILED, running=None), text


def pass_of(e: Mapping[str, Any]) -> FinishedPass:
    """Read a completed pass from an event or from an entry of mirror.json."""
    round_s = float(e.get("round_s", 0.0))
    return FinishedPass(
        number=int(e["pass"]),
        pages=int(e["pages"]),
        sent_pages=int(e["sent_pages"]),
        zero_pages=int(e["zero_pages"]),
        unchanged_pages=int(e["unchanged_pages"]),
        deferred_pages=int(e["held_pages"]),
        bytes=int(e["bytes"]),
        duration_s=float(e["duration_s"]),
        dirty_per_s=int(e["dirty_pages"]) / round_s if round_s > 0 else None,
        connection_lost=bool(e.get("broken", False)),
    )


def _on_progress(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    running = RunningPass(
        number=int(e["pass"]),
        pages=int(e["pages"]),
        done_pages=min(int(e["done_pages"]), int(e["pages"])),
        rate=float(e["rate_bytes_per_s"] or 0.0),
        left_s=_optional(e["left_s"]),
        downtime_s=_optional(e["predicted_downtime_s"]),
    )
    return replace(p, stage=_unless_cancelling(p, Stage.COPYING), running=running)


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)


def _on_pass(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    stage = _unless_cancelling(p, Stage.COPYING)
    return replace(p, stage=stage, passes=(*p.passes, pass_of(e)), running=None)


def _on_decision(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    decision = PassDecision(int(e["after_pass"]), str(e["decision"]), one_line(str(e["reason"])))
    stopping = decision.action == "quiesce"
    stage = _unless_cancelling(p, Stage.STOPPING) if stopping else p.stage
    return replace(p, stage=stage, decisions=(*p.decisions, decision))


def _on_note(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    note = PassDecision(len(p.passes), "", one_line(str(e["text"])))
    return replace(p, decisions=(*p.decisions, note))


def _on_done(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    result = e["mirror"]
    last = result["passes"][-1]
    passes = p.passes if len(p.passes) == last["pass"] else (*p.passes, pass_of(last))
    return replace(p, passes=passes, result=result, running=None)


def _unless_cancelling(p: MirrorProgress, stage: Stage) -> Stage:
    return p.stage if p.stage is Stage.CANCELLING else stage


_HANDLERS = {
    "going": _on_progress,
    "pass": _on_pass,
    "decision": _on_decision,
    "note": _on_note,
    "done": _on_done,
}
