"""What the command line of redirty top asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redirty.collector.target.targets import TargetSet
from redirty.tui.readers.live import TopOptions
from redirty.tui.snapshots.convergence import ConvergenceQuestion


@dataclass(frozen=True)
class TopChoices:
    """replay: a recording. target: what to trace; None for both: the overview. measure: gives what the
    link has left, bytes per second, and where that comes from; takes a second or more. None: the
    bandwidth was typed, or is assumed."""

    replay: Path | None
    target: TargetSet | None
    wanted: TopOptions
    asked: ConvergenceQuestion
    measure: Callable[[], tuple[float, str]] | None
