"""Files that a process has open, by /proc/PID/fd."""

from __future__ import annotations

import contextlib
from pathlib import Path

from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs


def open_files(pid: int) -> dict[str, str]:
    """Return the link target of each descriptor (by its number, as text); empty once the process is gone."""
    found = {}
    try:
        for descriptor in Path(procfs.directory(pid), "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found[descriptor.name] = str(descriptor.readlink())
    except OSError as e:
        require_resources(e, f"cannot list the open files of process {pid}")
    return found
