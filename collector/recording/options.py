"""What is to be recorded, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redirty.collector.target.targets import TargetSet


@dataclass(frozen=True)
class RecordingOptions:
    """What to record. directory: None: no files are written. interval_s > 0; count: rounds, 0: no limit;
    duration_s: 0: no limit."""

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
        """Whether it ends by itself."""
        return bool(self.count or self.duration_s)
