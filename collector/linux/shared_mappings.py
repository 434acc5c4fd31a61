"""Objects behind shared mappings, by which processes share memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from redirty.collector.linux.maps import SYSTEM_V_PATH, split_line

Key = tuple[str, int, int]
"""Device, inode, and for System V memory its namespace: there the inode is just the segment's
number, and each namespace counts from 0."""

# One inode stands for all of the first kind, which are rings of a process's own; of the files in
# /dev only these are memory.
_NOT_MEMORY, _DEVICES = "anon_inode:", "/dev/"
_MEMORY_IN_DEV = ("/dev/shm/", "/dev/hugepages/", "/dev/dax", "/dev/zero (deleted)")


@dataclass(frozen=True)
class SharedObject:
    """A piece of shared memory, as one process maps it."""

    path: str
    writable: bool


def parse(text: bytes, namespace: int) -> Iterable[tuple[Key, SharedObject]]:
    """Yield the shared objects in lines of a maps file.

    Args:
        text: Whole lines.
        namespace: Number of the process's IPC namespace, for System V memory.
    """
    for line in text.split(b"\n"):
        if b"s " not in line:
            continue  # fast path: most mappings are private
        fields = split_line(line)
        path = fields.path.decode(errors="replace")
        if fields.perms[3:4] != b"s" or not path or path.startswith(_NOT_MEMORY):
            continue
        if path.startswith(_DEVICES) and not path.startswith(_MEMORY_IN_DEV):
            continue
        number = namespace if path.startswith(SYSTEM_V_PATH) else 0
        key = fields.device.decode(), int(fields.inode), number
        yield key, SharedObject(path, fields.perms[1:2] == b"w")


def merge(found: dict[Key, SharedObject], more: Iterable[tuple[Key, SharedObject]]) -> None:
    """Add objects to found; one that is mapped twice is writable if either mapping is."""
    for key, object_ in more:
        old = found.get(key)
        if old is None or (object_.writable and not old.writable):
            found[key] = object_


def objects_of(pid: int) -> dict[Key, SharedObject]:
    """Return the shared memory that a process maps; nothing if it is gone.

    Raises:
        PermissionError: The process may not be examined.
    """
    found: dict[Key, SharedObject] = {}
    try:
        namespace = os.stat(f"/proc/{pid}/ns/ipc").st_ino  # noqa: PTH116 - many of them, kept bare
        fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return found
    try:
        # Piece by piece, since a list may have 60,000 lines; the kernel mostly gives whole ones.
        rest = b""
        while part := os.read(fd, 1 << 16):
            head, newline, tail = (rest + part).rpartition(b"\n")
            if b"s " in head:
                merge(found, parse(head, namespace))
            rest = tail if newline else rest + part
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
    return found
