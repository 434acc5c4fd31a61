"""Network namespaces: which one a process is in, and who else is there. Source: namespaces(7)."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from redirty.collector.host.process import has_memory


def network_of(pid: int) -> int | None:
    """The number of its network namespace; None when it ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def others_in(networks: Collection[int], members: Collection[int]) -> list[int]:
    """Processes in one of these namespaces that are not members, ascending. Without the kernel's own
    threads, all of which are in the first one."""
    pids = sorted(int(e.name) for e in os.scandir("/proc") if e.name.isdigit())
    return [
        pid
        for pid in pids
        if pid not in members and network_of(pid) in networks and has_memory(pid)
    ]


def name_of(pid: int) -> str:
    """What people call it: its number and its name."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        comm = "?"
    return f"process {pid} ({comm})"
