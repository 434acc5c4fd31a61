"""Options of a recording: what to record, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redirty.collector.target.targets import TargetSet


@dataclass(frozen=True)
class RecordingOptions:
    """Options of a recording session.

    Attributes:
        target: the target.
        directory: a new directory for the files; None: none are written.
        interval_s: length of a round, > 0.
        count: number of rounds; 0: no limit.
        duration_s: length of the recording; 0: no limit.
        arm, probe: method of arming and kind of probe, or auto.
        events, stacks, physical, zeros: whether to write these further files.
    """

    target: TargetSet
    directory: Path | None
    interval_s: float = 1.0
    count: int = 0
    duration_s: float = 0.0
    arm: str = "auto"
    probe: str = "auto"
    events: bool = False
    stacks: bool = False
    physical: bool = False
    zeros: bool = False

    @property
    def bounded(self) -> bool:
        """Whether the recording ends by itself."""
        return bool(self.count or self.duration_s)
