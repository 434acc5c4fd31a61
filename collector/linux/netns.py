"""Network namespaces: which one a process is in, and who else is there. Source: namespaces(7)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from redirty.collector.linux.process import has_memory


def networks_of(pid: int) -> set[int]:
    """The numbers of the network namespaces of its threads; none when it ended."""
    found: set[int] = set()
    with contextlib.suppress(OSError):  # it ended
        for entry in os.scandir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # this thread did
                found.add(Path(entry.path, "ns/net").stat().st_ino)
    return found


def others_in(networks: Collection[int], members: Collection[int]) -> list[int]:
    """Processes that have a thread in one of these namespaces and are not members, ascending. Without the
    kernel's own threads, all of which are in the first one."""
    pids = sorted(int(e.name) for e in os.scandir("/proc") if e.name.isdigit())
    wanted = set(networks)
    return [
        pid for pid in pids if pid not in members and has_memory(pid) and networks_of(pid) & wanted
    ]


def name_of(pid: int) -> str:
    """What people call it: its number and its name."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        comm = "?"
    return f"process {pid} ({comm})"
