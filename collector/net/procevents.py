"""Fork, exec and exit of processes, from the kernel's proc connector.

The BPF programs trace children by themselves from their first instruction; from these events
the collector learns early what they are, including those that live for less than a round.
"""

from __future__ import annotations

import contextlib
import logging
import select
import struct
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError, why

log = logging.getLogger(__name__)

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
        self._socket: Any = None
        self._open()

    def _open(self) -> None:
        from pyroute2.netlink.connector.cn_proc import ProcEventSocket

        try:
            self._socket = ProcEventSocket()
            self._socket.bind()
            self._socket.control(listen=True)
        except OSError as e:
            self.close()
            raise RedirtyError(
                f"no process events from the kernel (CONFIG_PROC_EVENTS): {why(e)}"
            ) from None

    def take(self) -> list[ProcessEvent]:
        """Return the events since the last call, without waiting.

        When processes start and end faster than they are read, the kernel drops events (ENOBUFS) and the
        library's socket keeps failing, also with messages it cannot parse. It is opened anew then; the next
        scan of /proc finds the processes that were missed.
        """
        found: list[ProcessEvent] = []
        try:
            while self._socket and select.select([self._socket.fileno()], [], [], 0)[0]:
                found += filter(None, map(_event_of, self._socket.get()))
        except (OSError, struct.error) as e:
            log.info("process events were lost (%s); listening anew", e)
            self.close()
            with contextlib.suppress(RedirtyError):
                self._open()
        return found

    def close(self) -> None:
        """Stop listening."""
        if self._socket:
            with contextlib.suppress(OSError):  # what was lost before is raised here, too
                self._socket.close()
            self._socket = None


def _event_of(message: Any) -> ProcessEvent | None:
    """Return the event of a process in a message; None for those of threads, and other events."""
    kind = message.get("what")
    if kind == _FORK and message["child_pid"] == message["child_tgid"]:
        return ProcessEvent("fork", message["child_tgid"], message["parent_tgid"])
    if kind == _EXEC:
        return ProcessEvent("exec", message["process_tgid"])
    if kind == _EXIT and message["process_pid"] == message["process_tgid"]:
        return ProcessEvent("exit", message["process_tgid"])
    return None
