"""Names of the processes that belonged to a target, including short-lived ones, for meta.json."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from redirty.collector.errors import RedirtyError
from redirty.collector.linux import procfs
from redirty.collector.net.procevents import ProcessEvents

log = logging.getLogger(__name__)

_MAX_NAMES = 10_000


@dataclass
class ProcessNames:
    """Names of the target's processes, kept up to date by the proc connector.

    processes: by process ID, as in meta.json.
    """

    processes: dict[int, dict[str, Any]] = field(default_factory=dict)
    _events: ProcessEvents | None = None

    def listen(self) -> None:
        """Start listening; without CONFIG_PROC_EVENTS new processes are found only at the ends of rounds."""
        try:
            self._events = ProcessEvents()
        except RedirtyError as e:
            log.info("%s", e)

    def note(self, pid: int, parent: int | None = None) -> None:
        """Read the current name and command line of a process of the target."""
        if pid not in self.processes and len(self.processes) >= _MAX_NAMES:
            return
        entry = self.processes.setdefault(pid, {"pid": pid})
        if parent:
            entry["parent"] = parent
        comm, words = procfs.read_comm(pid), procfs.read_cmdline(pid)
        if comm is not None:
            entry["comm"] = comm
        if words is not None:
            entry["cmdline"] = " ".join(words)
        entry.setdefault("comm", self.processes.get(parent or 0, {}).get("comm", ""))
        entry.setdefault("cmdline", "")

    def poll(self) -> list[int]:
        """Process pending events; return the processes that joined."""
        joined: list[int] = []
        if self._events is None:
            return joined
        lost = self._events.take_lost()
        for event in self._events.take():
            if event.kind == "fork" and event.parent in self.processes:
                self.note(event.pid, event.parent)
                joined.append(event.pid)
            elif event.kind == "exec" and event.pid in self.processes:
                self.note(event.pid)
        return [*joined, *self._reread()] if lost else joined

    def _reread(self) -> list[int]:
        """Find in /proc the descendants of known processes whose fork was not reported; return them."""
        parents = {}
        for pid in procfs.pids():
            stat = procfs.read_stat(pid)
            if stat is not None:
                parents[pid] = stat.parent
        joined: list[int] = []
        new = len(self.processes) < _MAX_NAMES
        while new:
            new = False
            for pid, parent in parents.items():
                if pid not in self.processes and parent in self.processes:
                    self.note(pid, parent)
                    new |= pid in self.processes  # not if there are too many
                    joined.append(pid)
        return joined

    def close(self) -> None:
        """Stop listening."""
        if self._events is not None:
            self._events.close()
            self._events = None
