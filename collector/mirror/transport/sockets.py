"""Options and polling of sockets."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Protocol

_UNSENT_BYTES = 256 << 10


def tune(connection: socket.socket) -> None:
    """Set the options of a TCP socket: low latency, a short send queue, detection of a dead peer."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Keep the send queue short: sending a page is wasted if the target writes it while it waits there.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


class HasFileno(Protocol):
    """An object with a file descriptor."""

    def fileno(self) -> int:
        """Return the file descriptor."""


def readable(sources: Sequence[HasFileno], timeout_s: float | None) -> set[int]:
    """Wait until data can be read, and return the file descriptors that have some.

    Uses poll(2): descriptors may be beyond what select(2) can handle.

    Args:
        sources: the sockets to wait for.
        timeout_s: when to give up; None waits forever.
    """
    poll = select.poll()
    for source in sources:
        poll.register(source.fileno(), select.POLLIN)
    return {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
