"""Processes outside a target that map the same shared memory.

What they write to it is not in the target's write-fault log, and the target's page tables show it
only in part; so a recording names them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError
from redirty.collector.linux import procfs
from redirty.collector.linux.shared_mappings import (
    Identity,
    SharedMapping,
    SharedObject,
    Shown,
    identified,
    shared_mappings,
)

log = logging.getLogger(__name__)

_EVERY_S = 5.0
_SHARE = 50  # at most a fiftieth of the time is spent on the search
_MAX_FOUND = 10_000


@dataclass(frozen=True)
class Sharer:
    """A process outside the target, and an object that it shares with a process of it, as in meta.json."""

    pid: int
    comm: str
    path: str
    writable: bool
    target_pid: int
    target_writable: bool


class Sharers:
    """Searches for sharers periodically, in a thread, so that no round waits for it.

    members: the target's current processes; to be replaced, never modified.
    """

    def __init__(self, members: Collection[int]) -> None:
        self.members = members
        self._own: dict[Identity, tuple[int, SharedObject]] = {}
        self._found: dict[tuple[int, Identity], Sharer] = {}
        self._shown: set[Shown] = set()  # how lists of mappings show them
        self._hidden: set[int] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sharers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            started = time.monotonic()
            try:
                self._scan()
            except (
                OSError,
                RedirtyError,
            ) as e:  # such as too many open files: the next may succeed
                log.info("cannot search for processes that share memory: %s", e)
            took = time.monotonic() - started
            if self._end.wait(max(_EVERY_S, took * _SHARE)):
                return

    def _scan(self) -> None:
        members = frozenset(self.members)
        for pid in members:
            mappings = self._mappings(pid)
            self._shown |= {m.shown for m in mappings}
            for key, object_ in identified(pid, mappings).items():
                old = self._own.get(key)
                if old is None or (object_.writable and not old[1].writable):
                    self._own[key] = (pid, object_)
        self._hidden = set()
        if not self._own:
            return
        for pid in procfs.pids():
            if pid not in members and pid != os.getpid():
                self._compare(pid)

    def _mappings(self, pid: int) -> list[SharedMapping]:
        try:
            return shared_mappings(pid)
        except PermissionError:
            self._hidden.add(pid)
            return []

    def _compare(self, pid: int) -> None:
        objects = identified(pid, (m for m in self._mappings(pid) if m.shown in self._shown))
        for key in objects.keys() & self._own.keys():
            target_pid, own = self._own[key]
            if not (objects[key].writable or own.writable) or len(self._found) >= _MAX_FOUND:
                continue  # neither can write to it, such as a cache of the C library
            self._found[pid, key] = Sharer(
                pid=pid,
                comm=procfs.read_comm(pid) or "",
                path=objects[key].path,
                writable=objects[key].writable,
                target_pid=target_pid,
                target_writable=own.writable,
            )

    def finish(self, members: Collection[int]) -> dict[str, Any]:
        """Search one last time, end the thread, and return the keys of meta.json.

        members: all processes that ever belonged to the target.
        """
        self._end.set()
        self._thread.join()
        try:
            self._scan()
        except (OSError, RedirtyError) as e:
            log.info("cannot search for processes that share memory: %s", e)
        outside = [s for s in self._found.values() if s.pid not in members]
        outside.sort(key=lambda s: (s.pid, s.path))
        return {
            "shared_outside": [vars(s) for s in outside],
            "shared_outside_hidden": len(self._hidden.difference(members)),
        }
