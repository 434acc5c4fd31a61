"""The choices made on the command line of redirty top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redirty.collector.target.targets import TargetSet
from redirty.tui.readers.live import TopOptions
from redirty.tui.snapshots.convergence import ConvergenceQuestion


@dataclass(frozen=True)
class TopChoices:
    """The thing to show: a recording, a target, or all processes if both are None.

    Attributes:
        replay: directory of a recording.
        target: what to trace.
        trace: how to trace.
        question: first question to the model.
        measure: returns the free bandwidth of the link in bytes per second and its origin, within about a
            second; None: the bandwidth was given, or is assumed.
    """

    replay: Path | None
    target: TargetSet | None
    trace: TopOptions
    question: ConvergenceQuestion
    measure: Callable[[], tuple[float, str]] | None
