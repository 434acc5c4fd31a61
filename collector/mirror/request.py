"""What is to be mirrored, what a pass did, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from redirty.collector.mirror.decision import Decision, Goals
from redirty.collector.mirror.network_hold import Network
from redirty.collector.mirror.pipeline import Counts
from redirty.collector.mirror.state import State
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.rounds import Round


@dataclass(frozen=True)
class Wish:
    """What is to be mirrored, and how. bandwidth: bytes a second, None without a limit. qmp: the
    QMP socket of the QEMU that is mirrored. network: None when what it sends is not to be held."""

    target: TargetSet
    goals: Goals = field(default_factory=Goals)
    bandwidth: float | None = None
    verify: bool = False
    leave_stopped: bool = False
    arm: str = "auto"
    probe: str = "auto"
    compress: Callable[[memoryview], memoryview] | None = None
    keep_lists: bool = False
    qmp: str | None = None
    network: Network | None = None


@dataclass
class PassDone:
    """What a pass did. dirty_pages: of the round that ended with it. held_pages: kept for the end.
    broken: the connection broke, and it ended early."""

    number: int
    counts: Counts
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
class Going:
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


class Listener(Protocol):
    """Is told how it goes."""

    def passed(self, done: PassDone, state: State, result: Round) -> None:
        """A pass is over, and the round with it."""

    def decided(self, decision: Decision) -> None:
        """What comes next, and why."""

    def said(self, text: str) -> None:
        """Something else that a user should know."""

    def going(self, now: Going) -> None:
        """A pass goes on; now and then."""
