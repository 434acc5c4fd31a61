"""Network namespaces of processes. Source: namespaces(7)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs
from redirty.collector.linux.process import has_memory


def networks_of(pid: int) -> set[int]:
    """Return the inode numbers of the network namespaces of a process's threads; none once it ended."""
    found: set[int] = set()
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError as e:
        require_resources(e, f"cannot list the threads of process {pid}")
        return found  # the process ended
    for tid in threads:
        with contextlib.suppress(OSError):  # this thread ended
            found.add(Path(f"/proc/{pid}/task/{tid}/ns/net").stat().st_ino)
    return found


def others_in(networks: Collection[int], members: Collection[int]) -> list[int]:
    """Return the processes with a thread in one of these namespaces that are not members, ascending.

    Kernel threads, all of which are in the first namespace, are left out.
    """
    wanted = set(networks)
    return [
        pid
        for pid in sorted(procfs.pids())
        if pid not in members and has_memory(pid) and networks_of(pid) & wanted
    ]


def name_of(pid: int) -> str:
    """Return a human-readable name of a process: its PID and its comm."""
    comm = procfs.read_comm(pid)
    return f"process {pid} ({'?' if comm is None else comm.strip()})"
