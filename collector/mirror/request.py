"""A request to mirror a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.network_hold import NetworkHold
from redirty.collector.mirror.transport.destination import Destination
from redirty.collector.target.targets import TargetSet

# What a mirror is compared with: what was sent, after the target was resumed; all memory, while it is stopped.
VERIFY_SENT, VERIFY_FULL = "sent", "full"


@dataclass(frozen=True)
class MirrorRequest:
    """A target, a destination, and the options of the mirror.

    Attributes:
        target: the processes.
        destination: where the mirror goes.
        goals: when to stop the target.
        bandwidth: limit in bytes a second; None: no limit.
        verify: what the mirror is compared with: VERIFY_SENT or VERIFY_FULL; None: not at all.
        leave_stopped: leave the target stopped, as by SIGSTOP.
        arm: method of arming: auto, soft-dirty or uffd.
        probe: kind of probes: auto, fentry, kprobe or tracepoint.
        compress: compresses page contents; None: no compression.
        qmp: path of the QMP socket of the QEMU that is the target.
        network: how to hold the target's network traffic while it is stopped; None: not held.
    """

    target: TargetSet
    destination: Destination
    goals: Goals = field(default_factory=Goals)
    bandwidth: float | None = None
    verify: str | None = None
    leave_stopped: bool = False
    arm: str = "auto"
    probe: str = "auto"
    compress: Callable[[memoryview], memoryview] | None = None
    qmp: str | None = None
    network: NetworkHold | None = None
