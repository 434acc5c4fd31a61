"""The number of statistics slots that the kernel side keeps for a target."""

from __future__ import annotations

from redirty.collector.target.targets import TargetSet

_MANY, _FEW = 1024, 64


def slot_count(target: TargetSet) -> int:
    """Return how many slots to allocate: one for each address space, with room for those to come.

    A target that follows forks may grow to any size; any other target at most replaces its processes'
    memory by exec.
    """
    return _MANY if target.follow_fork else max(_FEW, 2 * len(target.members()))
