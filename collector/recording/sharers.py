"""Processes outside a target that map the same shared memory.

What they write to it is not in the target's write-fault log, and its own page tables tell of it
only in part; so a recording names them. Memory is the same when device and inode are: that holds
for files, memfd, shared anonymous and System V memory. Source: proc_pid_maps(5), ipc/shm.c.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_EVERY_S = 5.0
_SHARE = 50  # and at most a fiftieth of the time goes into it
_KEPT = 10_000

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
class Object:
    """A piece of shared memory, as one process maps it."""

    path: str
    writable: bool


@dataclass(frozen=True)
class Sharer:
    """A process outside the target, and a piece of memory that it shares with a process in it."""

    pid: int
    comm: str
    path: str
    writable: bool
    target_pid: int
    target_writable: bool


def parse(text: bytes, namespace: int) -> Iterable[tuple[Key, Object]]:
    """The shared mappings in lines of a maps file. namespace: of System V memory."""
    for writable, device, inode, name in _LINE.findall(text):
        path = name.decode(errors="replace")
        if path.startswith(_NOT_MEMORY):
            continue
        if path.startswith(_DEVICES) and not path.startswith(_MEMORY_IN_DEV):
            continue
        number = namespace if path.startswith(_SYSTEM_V) else 0
        yield (device.decode(), int(inode), number), Object(path, writable == b"w")


def merge(found: dict[Key, Object], more: Iterable[tuple[Key, Object]]) -> None:
    """Adds objects; one that is mapped twice is writable if either mapping is."""
    for key, object_ in more:
        old = found.get(key)
        if old is None or (object_.writable and not old.writable):
            found[key] = object_


def objects_of(pid: int) -> dict[Key, Object]:
    """What shared memory a process maps; nothing when it is gone.

    Errors: PermissionError.
    """
    found: dict[Key, Object] = {}
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


class Sharers:
    """Looks for them now and then, in a thread, so that no round waits for it.

    members: the target's processes now; to be replaced, never changed.
    """

    def __init__(self, members: Collection[int]) -> None:
        self.members = members
        self._ours: dict[Key, tuple[int, Object]] = {}
        self._found: dict[tuple[int, Key], Sharer] = {}
        self._hidden: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sharers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                self._look()
            except OSError as e:  # too many files open, say: it is tried again
                log.info("cannot look for processes that share memory: %s", e)
            took = time.monotonic() - begun
            if self._end.wait(max(_EVERY_S, took * _SHARE)):
                return

    def _look(self) -> None:
        members = frozenset(self.members)
        for pid in members:
            for key, object_ in self._objects(pid).items():
                old = self._ours.get(key)
                if old is None or (object_.writable and not old[1].writable):
                    self._ours[key] = (pid, object_)
        self._hidden = set()
        if not self._ours:
            return
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                pid = int(entry.name)
                if pid not in members and pid != os.getpid():
                    self._compare(pid)

    def _objects(self, pid: int) -> Mapping[Key, Object]:
        try:
            return objects_of(pid)
        except PermissionError:
            self._hidden.add(pid)
            return {}

    def _compare(self, pid: int) -> None:
        theirs = self._objects(pid)
        for key in theirs.keys() & self._ours.keys():
            target_pid, ours = self._ours[key]
            if not (theirs[key].writable or ours.writable) or len(self._found) >= _KEPT:
                continue  # nobody writes to it: a cache of the C library, say
            self._found[pid, key] = Sharer(
                *(pid, _comm(pid), theirs[key].path, theirs[key].writable),
                *(target_pid, ours.writable),
            )

    def finish(self, members: Collection[int]) -> dict[str, Any]:
        """Looks a last time and ends. members: all that ever belonged to the target.

        Returns what meta.json says of it.
        """
        self._end.set()
        self._thread.join()
        try:
            self._look()
        except OSError as e:
            log.info("cannot look for processes that share memory: %s", e)
        outside = [s for s in self._found.values() if s.pid not in members]
        outside.sort(key=lambda s: (s.pid, s.path))
        return {
            "shared_outside": [vars(s) for s in outside],
            "shared_outside_hidden": len(self._hidden.difference(members)),
        }


def _comm(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_bytes()
    except OSError:
        return ""
    return name.removesuffix(b"\n").decode(errors="replace")
