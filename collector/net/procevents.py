"""Fork, exec and exit of processes, from the kernel's proc connector.

The BPF programs trace children by themselves from their first instruction; from these events
the collector learns early what they are, including those that live for less than a round.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError, why

_FORK, _EXEC, _EXIT = 0x1, 0x2, 0x80000000


@dataclass(frozen=True)
class ProcessEvent:
    """An event. kind: fork, exec or exit; parent: of a fork, else 0."""

    kind: str
    pid: int
    parent: int = 0


class ProcessEvents:
    """A listener for events of all processes.

    Raises:
        RedirtyError: The kernel sends none (not root, no CONFIG_PROC_EVENTS).
    """

    def __init__(self) -> None:
        from pyroute2.netlink.connector.cn_proc import ProcEventSocket

        try:
            self._socket: Any = ProcEventSocket()
            self._socket.bind()
            self._socket.control(listen=True)
        except OSError as e:
            raise RedirtyError(
                f"no process events from the kernel (CONFIG_PROC_EVENTS): {why(e)}"
            ) from None

    def take(self) -> list[ProcessEvent]:
        """Return the events since the last call, without waiting."""
        found: list[ProcessEvent] = []
        while select.select([self._socket.fileno()], [], [], 0)[0]:
            try:
                messages = list(self._socket.get())
            except OSError:
                break  # ENOBUFS: events were lost; the next scan of /proc finds the processes
            for message in messages:
                kind = message.get("what")
                if kind == _FORK and message["child_pid"] == message["child_tgid"]:
                    found.append(
                        ProcessEvent("fork", message["child_tgid"], message["parent_tgid"])
                    )
                elif kind == _EXEC:
                    found.append(ProcessEvent("exec", message["process_tgid"]))
                elif kind == _EXIT and message["process_pid"] == message["process_tgid"]:
                    found.append(ProcessEvent("exit", message["process_tgid"]))
        return found

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
