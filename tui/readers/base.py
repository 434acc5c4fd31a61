"""A reader: a thread that makes snapshots, and keeps the latest one for a screen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from redirty.collector.errors import failure_of_the_machine

log = logging.getLogger(__name__)

S = TypeVar("S")
_JOIN_S = 30.0


class Reader(Generic[S]):
    """Base of all readers. A subclass implements work(), which publishes snapshots until `stopping`.

    A screen may skip snapshots: only the latest one is kept.

    Attributes:
        latest: the latest snapshot; None before the first one.
        on_snapshot: called from the reader's thread after each snapshot; it must only wake the screen.
        drawn: set by a screen once it has shown a snapshot.
    """

    def __init__(self) -> None:
        self.latest: S | None = None
        self.on_snapshot: Callable[[], None] = lambda: None
        self.drawn = threading.Event()
        self._wake = threading.Condition()
        self._stopping = False
        self._number = 0
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """True once the reader has to end."""
        return self._stopping

    def request_stop(self) -> None:
        """Make the reader end soon; do not wait for it."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def close(self) -> None:
        """End the reader and wait until it has released everything."""
        self.request_stop()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def work(self) -> None:
        """Read and publish, in the reader's thread. Exceptions are passed to failed()."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Publish an error of work(); the screen stays."""
        raise NotImplementedError

    def publish(self, snapshot: S) -> None:
        """Make a snapshot the latest one and wake the screen."""
        self.latest = snapshot
        self.on_snapshot()

    def next_number(self) -> int:
        """Return the number of the next snapshot."""
        self._number += 1
        return self._number

    def _run(self) -> None:
        try:
            self.work()
        except Exception as e:
            log.debug("%s ended", type(self).__name__, exc_info=True)
            self.failed(e)


def error_text(error: Exception) -> str:
    """Return an error's message; unexpected errors that are no failure of the machine are marked as internal."""
    text = str(error) or type(error).__name__
    if getattr(error, "exit_code", None) is not None:
        return text
    failure = failure_of_the_machine(error)
    return str(failure) if failure else f"internal error: {type(error).__name__}: {text}"
