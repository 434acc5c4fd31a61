"""Events of a mirror, and the base class of their observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.pipeline import PassCounts
from redirty.collector.tracking.rounds import Round


@dataclass
class PassReport:
    """A finished pass.

    Attributes:
        number: of the pass, from 1.
        counts: pages by how they were handled.
        bytes: bytes sent in this pass.
        duration_s: duration of the pass.
        deferred_pages: pages kept for the stop-and-copy pass.
        dirty_pages: written in the round that ended with the pass.
        new_pages: those of them that were not present when the round started.
        broken: the connection was lost, and the pass ended early.
    """

    number: int
    counts: PassCounts
    bytes: int
    duration_s: float
    deferred_pages: int = 0
    dirty_pages: int = 0
    new_pages: int = 0
    broken: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dict for mirror.json."""
        c = self.counts
        return {
            "pass": self.number,
            "pages": c.pages,
            "sent_pages": c.sent_pages,
            "zero_pages": c.zero_pages,
            "unchanged_pages": c.unchanged_pages,
            "unread_pages": c.unread_pages,
            "held_pages": self.deferred_pages,
            "bytes": self.bytes,
            "duration_s": round(self.duration_s, 6),
            "dirty_pages": self.dirty_pages,
            "new_pages": self.new_pages,
            **({"broken": True} if self.broken else {}),
        }


@dataclass(frozen=True)
class ProgressReport:
    """The progress of a pass that is running.

    Attributes:
        number: of the pass, from 1.
        pages: pages to process in the pass.
        done_pages: pages processed so far.
        sent_bytes: bytes sent so far in the pass.
        rate: bytes a second sent in the pass.
        dirty_per_s: bytes a second that the target dirties; None: not known yet.
        left_s: predicted time until the mirror is complete; None: not known, or never.
        downtime_s: predicted downtime; None: not known, or the mirror will not converge.
    """

    number: int
    pages: int
    done_pages: int
    sent_bytes: int
    rate: float
    dirty_per_s: float | None
    left_s: float | None
    downtime_s: float | None


class MirrorObserver:
    """Observes a mirror. Ignores every event: a subclass overrides those that it needs."""

    def on_start(self, cancel: Callable[[], None]) -> None:
        """Handle the start; cancel() may be called from any thread to end the mirror."""

    def on_pass(self, report: PassReport, result: Round) -> None:
        """Handle the end of a pass, and of the round `result` that ended with it."""

    def on_decision(self, decision: Decision) -> None:
        """Handle the decision about the next step."""

    def on_note(self, text: str) -> None:
        """Handle a note for the user."""

    def on_progress(self, progress: ProgressReport) -> None:
        """Handle the progress of a running pass, at intervals."""

    def on_done(self, information: dict[str, Any]) -> None:
        """Handle the commit of the mirror; `information` is the contents of mirror.json."""

    def on_failed(self, reason: str) -> None:
        """Handle the failure of the mirror, which was discarded."""

    def close(self) -> None:
        """Release resources: no more events follow."""
