"""What is to be mirrored, what a pass did, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.network_hold import NetworkHold
from redirty.collector.target.targets import TargetSet


@dataclass(frozen=True)
class MirrorRequest:
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
    network: NetworkHold | None = None
