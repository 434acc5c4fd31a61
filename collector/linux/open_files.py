"""Open files: those of a process, by /proc/PID/fd, and the kind of file system that one lies in."""

from __future__ import annotations

import contextlib
import ctypes
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


OVERLAY, FUSE = 0x794C7630, 0x65735546
CGROUP, CGROUP2 = 0x27E0EB, 0x63677270
"""Kinds of file systems, see file_system(). Source: include/uapi/linux/magic.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def file_system(fd: int) -> int:
    """Return the kind of the file system of an open file, such as OVERLAY; 0 if unknown."""
    answer = (ctypes.c_long * 64)()  # more than struct statfs, whose first field it is
    return 0 if _libc.fstatfs(fd, answer) else int(answer[0])
