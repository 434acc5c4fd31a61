"""Births, new programs and deaths of processes, from the kernel's proc connector.

The log follows children by itself, in the kernel, from their first instruction; these events tell
the collector soon who they are, also of those that live for less than a round.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError, why

_FORK, _EXEC, _EXIT = 0x1, 0x2, 0x80000000


@dataclass(frozen=True)
class ProcessEvent:
    """kind: fork, exec or exit; parent: of a fork, else 0."""

    kind: str
    pid: int
    parent: int = 0


class ProcessEvents:
    """Listens. Errors of the constructor: RedirtyError (not root, no CONFIG_PROC_EVENTS)."""

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
        """What happened since the last call; does not wait."""
        found: list[ProcessEvent] = []
        while select.select([self._socket.fileno()], [], [], 0)[0]:
            try:
                messages = list(self._socket.get())
            except OSError:
                break  # ENOBUFS: events were lost; the next look at the system finds who is there
            for message in messages:
                what = message.get("what")
                if what == _FORK and message["child_pid"] == message["child_tgid"]:
                    found.append(
                        ProcessEvent("fork", message["child_tgid"], message["parent_tgid"])
                    )
                elif what == _EXEC:
                    found.append(ProcessEvent("exec", message["process_tgid"]))
                elif what == _EXIT and message["process_pid"] == message["process_tgid"]:
                    found.append(ProcessEvent("exit", message["process_tgid"]))
        return found

    def close(self) -> None:
        """Stops listening."""
        self._socket.close()
