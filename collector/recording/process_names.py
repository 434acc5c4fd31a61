"""Who belonged to a target over time: names for meta.json, also of processes that lived shortly."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from redirty.collector.errors import RedirtyError
from redirty.collector.linux import procfs
from redirty.collector.net.procevents import ProcessEvents

log = logging.getLogger(__name__)

_NAMES_KEPT = 10_000


@dataclass
class ProcessNames:
    """Follows fork, exec and exit of the target's processes by the proc connector."""

    processes: dict[int, dict[str, Any]] = field(default_factory=dict)
    _events: ProcessEvents | None = None

    def listen(self) -> None:
        """Begins to follow; without it (no CONFIG_PROC_EVENTS) only rounds' looks tell."""
        try:
            self._events = ProcessEvents()
        except RedirtyError as e:
            log.info("%s", e)

    def note(self, pid: int, parent: int | None = None) -> None:
        """A process of the target: reads its name and command line as they are now."""
        if pid not in self.processes and len(self.processes) >= _NAMES_KEPT:
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
        """Takes the events; the processes that joined."""
        joined: list[int] = []
        for event in self._events.take() if self._events else ():
            if event.kind == "fork" and event.parent in self.processes:
                self.note(event.pid, event.parent)
                joined.append(event.pid)
            elif event.kind == "exec" and event.pid in self.processes:
                self.note(event.pid)
        return joined

    def close(self) -> None:
        """Stops following."""
        if self._events is not None:
            self._events.close()
            self._events = None
