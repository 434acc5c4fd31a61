"""Buffers that a process registered with io_uring: pinned, and written by physical address.

Source: io_uring_register(2) (IORING_REGISTER_BUFFERS); the lines "UserBufs" of /proc/PID/fdinfo.
"""

from __future__ import annotations

import re
from pathlib import Path

from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs
from redirty.collector.linux.maps import Mappings
from redirty.collector.linux.open_files import open_files

RING = "anon_inode:[io_uring]"
"""Target of the symbolic link of a ring's descriptor, and path of the ring's mapping."""
_BUFFER = re.compile(rb"^ *\d+: 0x[0-9a-f]+/(\d+)$", re.MULTILINE)


def registered_kib(pid: int, mappings: Mappings) -> int:
    """Return the size in KiB of all buffers that a process registered; 0 once it is gone.

    Args:
        pid: The process.
        mappings: Its mappings. Without a ring among them its descriptors are not read. (A ring in
            memory that the process supplied, IORING_SETUP_NO_MMAP, is not among them.)
    """
    if RING not in mappings.paths:
        return 0
    total = 0
    for descriptor, path in open_files(pid).items():
        if path == RING:
            try:
                info = Path(procfs.directory(pid), "fdinfo", descriptor).read_bytes()
            except OSError as e:  # closed meanwhile
                require_resources(e, f"cannot read the io_uring buffers of process {pid}")
                continue
            total += buffers_bytes(info)
    return total >> 10


def buffers_bytes(fdinfo: bytes) -> int:
    """Return the size in bytes of all buffers that the fdinfo file of a ring lists."""
    _, _, rest = fdinfo.partition(b"\nUserBufs:")
    listed, _, _ = rest.partition(b"\nPollList:")
    return sum(int(length) for length in _BUFFER.findall(listed))
