"""PIDs of the helper processes that this process started.

They are never part of a target, even when redirty itself runs inside the traced tree or cgroup.
"""

from __future__ import annotations

import os

_helpers: set[int] = set()


def add(pid: int) -> None:
    """Register a helper that was just started."""
    _helpers.add(pid)


def discard(pid: int) -> None:
    """Forget a helper that was reaped: its PID may be reused from now on."""
    _helpers.discard(pid)


def own_pids() -> set[int]:
    """Return the PIDs of this process and its helpers."""
    return {os.getpid(), *_helpers}
