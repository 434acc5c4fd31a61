"""Opens files that a target controls: never a FIFO or a device, and never by a path of the target alone.

Used by the symbol reader, with Python's standard library only. A file is first opened with O_PATH, which reads
nothing and waits for nothing, and is opened for reading once it has proved to be a regular file.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # the same on every architecture
_NO_MAGIC_LINKS, _IN_ROOT = 0x02, 0x10  # include/uapi/linux/openat2.h

Read = Callable[[int, int], bytes]
"""Returns the bytes at an offset, given the offset and their number; fewer at the end."""


class RegularFile:
    """A regular file that is open for reading.

    Attributes:
        size: Its size in bytes when it was opened.
        identity: Distinguishes it from other files, and from other contents of the same file.
        owner: User ID of its owner.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """

    def __init__(self, found: int) -> None:
        """Take over a descriptor that was opened with O_PATH."""
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            # O_NONBLOCK: a lease of the target must not make the open wait
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._fd = os.open(f"/proc/self/fd/{found}", flags)
        finally:
            os.close(found)
        self.size = status.st_size
        self.owner = status.st_uid
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset; fewer at the file's end. Raises: OSError."""
        parts = []
        while size > 0 and (part := os.pread(self._fd, min(size, 1 << 20), offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_below(root: str, path: str) -> RegularFile:
    """Open a file by its path below a root directory, which no link can leave. Raises: OSError."""
    flags = os.O_PATH | os.O_CLOEXEC
    top = os.open(root, flags | os.O_DIRECTORY)
    try:
        how = _How(flags | os.O_NOFOLLOW, 0, _IN_ROOT | _NO_MAGIC_LINKS)
        name = os.fsencode(path)
        found = _libc.syscall(_OPENAT2, top, name, ctypes.byref(how), ctypes.sizeof(how))
        if found < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return RegularFile(found)
    finally:
        os.close(top)


def open_mapped(pid: int, start: int, end: int, path: str) -> RegularFile:
    """Open the file of a mapping: the very file, whatever its path names by now.

    Where the kernel does not allow that (a container without CAP_SYS_ADMIN), the file at its path.

    Raises:
        OSError: There is none, or it is not a regular file.
    """
    try:
        link = f"/proc/{pid}/map_files/{start:x}-{end:x}"
        return RegularFile(os.open(link, os.O_PATH | os.O_CLOEXEC))
    except PermissionError:
        return open_below(f"/proc/{pid}/root", path.lstrip("/"))
