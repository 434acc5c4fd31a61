"""Find the objects behind mappings, by which processes share memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

Key = tuple[str, int, int]
"""Device, inode, and for System V memory its namespace: there the inode is just the segment's
number, and each namespace counts from 0."""


# shared lines only: bounds, perms, offset, device, inode, path
_LINE = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ [r-]([w-])[x-]s [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+) ([0-9]+) +(.+)$",
    re.MULTILINE,
)


# One inode stands for all of the first kind, which are rings of a process's own; of the files in
# /dev only these are memory.
_NOT_MEMORY, _DEVICES = "anon_inode:", "/dev/"


_MEMORY_IN_DEV = ("/dev/shm/", "/dev/hugepages/", "/dev/dax", "/dev/zero (deleted)")


_SYSTEM_V = "/SYSV"


@dataclass(frozen=True)
class SharedObject:
    """A piece of shared memory, as one process maps it."""

    path: str
    writable: bool


def parse(text: bytes, namespace: int) -> Iterable[tuple[Key, SharedObject]]:
    """The shared mappings in lines of a maps file. namespace: of System V memory."""
    for writable, device, inode, name in _LINE.findall(text):
        path = name.decode(errors="replace")
        if path.startswith(_NOT_MEMORY):
            continue
        if path.startswith(_DEVICES) and not path.startswith(_MEMORY_IN_DEV):
            continue
        number = namespace if path.startswith(_SYSTEM_V) else 0
        yield (device.decode(), int(inode), number), SharedObject(path, writable == b"w")


def merge(found: dict[Key, SharedObject], more: Iterable[tuple[Key, SharedObject]]) -> None:
    """Adds objects; one that is mapped twice is writable if either mapping is."""
    for key, object_ in more:
        old = found.get(key)
        if old is None or (object_.writable and not old.writable):
            found[key] = object_


def objects_of(pid: int) -> dict[Key, SharedObject]:
    """What shared memory a process maps; nothing when it is gone.

    Errors: PermissionError.
    """
    found: dict[Key, SharedObject] = {}
    try:
        namespace = os.stat(f"/proc/{pid}/ns/ipc").st_ino  # noqa: PTH116 - many of them, kept bare
        fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return found
    try:
        # Piece by piece, for a list may have 60,000 lines; the kernel gives whole ones, mostly.
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
