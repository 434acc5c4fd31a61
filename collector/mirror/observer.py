"""Progress events of a mirror, and who observes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.pipeline import PassCounts
from redirty.collector.mirror.state import MirrorState
from redirty.collector.tracking.rounds import Round


@dataclass
class PassReport:
    """What a pass did. dirty_pages: of the round that ended with it. held_pages: kept for the end.
    broken: the connection broke, and it ended early."""

    number: int
    counts: PassCounts
    bytes: int
    duration_s: float
    held_pages: int = 0
    dirty_pages: int = 0
    new_pages: int = 0
    broken: bool = False

    def as_json(self) -> dict[str, Any]:
        """For mirror.json."""
        c = self.counts
        return {
            "pass": self.number,
            "pages": c.pages,
            "sent_pages": c.sent_pages,
            "zero_pages": c.zero_pages,
            "unchanged_pages": c.unchanged_pages,
            "unread_pages": c.unread_pages,
            "held_pages": self.held_pages,
            "bytes": self.bytes,
            "duration_s": round(self.duration_s, 6),
            "dirty_pages": self.dirty_pages,
            "new_pages": self.new_pages,
            **({"broken": True} if self.broken else {}),
        }


@dataclass(frozen=True)
class ProgressReport:
    """How a pass goes on. done_pages: of pages, looked at. rate, dirty_per_s: bytes a second, of this pass.
    left_s, downtime_s: as predicted from what was written so far; None: not known, or it will not end."""

    number: int
    pages: int
    done_pages: int
    sent_bytes: int
    rate: float
    dirty_per_s: float | None
    left_s: float | None
    downtime_s: float | None


class MirrorObserver(Protocol):
    """Is told how it goes."""

    def passed(self, done: PassReport, state: MirrorState, result: Round) -> None:
        """A pass is over, and the round with it."""

    def decided(self, decision: Decision) -> None:
        """What comes next, and why."""

    def said(self, text: str) -> None:
        """Something else that a user should know."""

    def going(self, now: ProgressReport) -> None:
        """A pass goes on; now and then."""
