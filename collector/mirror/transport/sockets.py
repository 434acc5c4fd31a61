"""Polling of sockets."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Protocol


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
