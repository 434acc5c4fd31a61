"""How a mirror goes, added up from the lines that `redirty mirror --json-lines` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from redirty.collector.errors import one_line

_INTERRUPTED = 130
_PREDICTED = ("left_s", "predicted_downtime_s")


class Stage(Enum):
    """What it does."""

    STARTING = "starting"
    COPYING = "copying"
    STOPPING = "the target stands still"
    CANCELLING = "cancelling"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Nothing comes any more."""
        return self in (Stage.DONE, Stage.CANCELLED, Stage.FAILED)


@dataclass(frozen=True)
class FinishedPass:
    """A pass that is over. dirty_per_s: pages that the target wrote meanwhile, each second; None for the
    last pass, in which it stood still."""

    number: int
    pages: int
    sent_pages: int
    zero_pages: int
    unchanged_pages: int
    held_pages: int
    bytes: int
    duration_s: float
    dirty_per_s: float | None
    broken: bool

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True)
class PassDecision:
    """What was decided after a pass, and why; action "": something else that is to be known."""

    after_pass: int
    action: str
    reason: str


@dataclass(frozen=True)
class RunningPass:
    """The pass that goes on. done_pages: of pages, looked at so far. rate: bytes a second. left_s,
    downtime_s: of the whole mirror, as predicted from what was written so far; None: not known."""

    number: int
    pages: int
    done_pages: int
    rate: float
    left_s: float | None = None
    downtime_s: float | None = None


@dataclass(frozen=True)
class MirrorProgress:
    """All that was told so far. result: what mirror.json says."""

    stage: Stage = Stage.STARTING
    passes: tuple[FinishedPass, ...] = ()
    steps: tuple[PassDecision, ...] = ()
    going: RunningPass | None = None
    result: Mapping[str, Any] | None = None

    def take(self, event: Mapping[str, Any]) -> MirrorProgress:
        """With another line. One of a kind that is not known changes nothing."""
        taken = _TAKE.get(str(event.get("event")))
        return self if taken is None else taken(self, event)

    def ended(self, code: int, said: str, *, cancelled: bool) -> tuple[MirrorProgress, str]:
        """When the process has ended: with its exit code, and its last line on stderr. Also a message."""
        if code == 0 and self.result is not None:
            return replace(self, stage=Stage.DONE, going=None), ""
        if cancelled and code == _INTERRUPTED:
            return replace(self, stage=Stage.CANCELLED, going=None), (
                "cancelled: the target runs on, there is no mirror"
            )
        text = one_line(said.strip()).removeprefix("redirty: ")
        if not text:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            text = f"redirty mirror ended with {how}: the target runs on, there is no mirror"
        return replace(self, stage=Stage.FAILED, going=None), text


def _going(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    going = RunningPass(
        int(e["pass"]),
        int(e["pages"]),
        min(int(e["done_pages"]), int(e["pages"])),
        float(e["rate_bytes_per_s"] or 0.0),
        *(None if (v := e[name]) is None else float(v) for name in _PREDICTED),
    )
    return replace(p, stage=_unless_cancelling(p, Stage.COPYING), going=going)


def pass_of(e: Mapping[str, Any]) -> FinishedPass:
    """From a line, or from mirror.json."""
    round_s = float(e.get("round_s", 0.0))
    return FinishedPass(
        number=int(e["pass"]),
        pages=int(e["pages"]),
        sent_pages=int(e["sent_pages"]),
        zero_pages=int(e["zero_pages"]),
        unchanged_pages=int(e["unchanged_pages"]),
        held_pages=int(e["held_pages"]),
        bytes=int(e["bytes"]),
        duration_s=float(e["duration_s"]),
        dirty_per_s=int(e["dirty_pages"]) / round_s if round_s > 0 else None,
        broken=bool(e.get("broken", False)),
    )


def _passed(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    stage = _unless_cancelling(p, Stage.COPYING)
    return replace(p, stage=stage, passes=(*p.passes, pass_of(e)), going=None)


def _decided(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    step = PassDecision(int(e["after_pass"]), str(e["decision"]), one_line(str(e["reason"])))
    stage = _unless_cancelling(p, Stage.STOPPING) if step.action == "quiesce" else p.stage
    return replace(p, stage=stage, steps=(*p.steps, step))


def _noted(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    step = PassDecision(len(p.passes), "", one_line(str(e["text"])))
    return replace(p, steps=(*p.steps, step))


def _done(p: MirrorProgress, e: Mapping[str, Any]) -> MirrorProgress:
    result = e["mirror"]
    last = result["passes"][-1]
    passes = p.passes if len(p.passes) == last["pass"] else (*p.passes, pass_of(last))
    return replace(p, passes=passes, result=result, going=None)


def _unless_cancelling(p: MirrorProgress, stage: Stage) -> Stage:
    return p.stage if p.stage is Stage.CANCELLING else stage


_TAKE = {
    "going": _going,
    "pass": _passed,
    "decision": _decided,
    "note": _noted,
    "done": _done,
}
