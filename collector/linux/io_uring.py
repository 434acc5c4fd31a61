"""Buffers that a process registered with io_uring: pinned, and written by physical address.

Source: io_uring_register(2) (IORING_REGISTER_BUFFERS); the lines "UserBufs" of /proc/PID/fdinfo.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from redirty.collector.linux.maps import Mappings

_RINGS = "anon_inode:[io_uring]"
_BUFFER = re.compile(rb"^ *\d+: 0x[0-9a-f]+/(\d+)$", re.MULTILINE)


def registered_kib(pid: int, mappings: Mappings) -> int:
    """How much memory a process has registered as buffers; 0 when it is gone.

    mappings: of the process; without rings among them its descriptors are not looked at. (A
    ring in memory that the process brought, IORING_SETUP_NO_MMAP, is not among them.)
    """
    if _RINGS not in mappings.paths:
        return 0
    total = 0
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if str(descriptor.readlink()) == _RINGS:
                    info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_bytes()
                    total += buffers_bytes(info)
    except OSError:
        pass
    return total >> 10


def buffers_bytes(fdinfo: bytes) -> int:
    """Bytes of all buffers that the fdinfo file of a ring lists."""
    _, _, rest = fdinfo.partition(b"\nUserBufs:")
    listed, _, _ = rest.partition(b"\nPollList:")
    return sum(int(length) for length in _BUFFER.findall(listed))
