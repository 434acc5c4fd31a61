"""Files that anybody may have made or damaged: opened without waiting, regular ones only, read up to a limit.

Opening a FIFO waits for a writer, reading a device may never end, and a sparse file of a terabyte takes a few bytes
of a disk. Nothing that a user names is opened in another way.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from redirty.collector.units import show_bytes

_CHUNK = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_MIN_LIMIT = 256 << 20


def memory_limit() -> int:
    """Return how many bytes of one file are read into memory: an eighth of this machine's, as tables take more."""
    return max(_MIN_LIMIT, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)


def _require_regular(mode: int) -> None:
    """Check the kind of a file. Raises: OSError for all but regular files."""
    if not stat.S_ISREG(mode):
        kind = next((name for fits, name in _KINDS if fits(mode)), "no file")
        raise OSError(f"it is {kind}, not a regular file")


def open_regular(path: Path, flags: int = 0) -> int:
    """Open a regular file for reading, without waiting, and return its descriptor.

    flags: further ones of os.open().

    Raises: OSError when that fails, or it is another kind of file.
    """
    # Opening some devices has effects: they are recognized first.
    _require_regular(path.stat(follow_symlinks=not flags & os.O_NOFOLLOW).st_mode)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags)
    try:
        _require_regular(os.fstat(fd).st_mode)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file as a whole.

    Raises: OSError when that fails, it is another kind of file, or it has more than `most` bytes.
    """
    fd = open_regular(path)
    try:
        require_size(os.fstat(fd).st_size, most)
        parts, size = [], 0
        while part := os.read(fd, _CHUNK):
            size += len(part)
            require_size(size, most)
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def require_size(size: int, most: int) -> None:
    """Check a size in bytes. Raises: OSError when it is more than `most`."""
    if size > most:
        raise OSError(f"it has {show_bytes(size)}, more than the {show_bytes(most)} that are read")
