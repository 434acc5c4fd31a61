"""A reader: a thread that makes snapshots, and the place where a screen finds the newest one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

S = TypeVar("S")
_PATIENCE_S = 30.0


class Reader(Generic[S]):
    """Base of all readers. A subclass has work(), which publishes snapshots until `stopping`.

    told: called from the reader's thread after each new snapshot; it must only wake the screen up.
    Snapshots that nobody looked at meanwhile are passed over: latest is always the newest one.
    """

    def __init__(self) -> None:
        self.latest: S | None = None
        self.told: Callable[[], None] = lambda: None
        self.drawn = threading.Event()  # set by a screen that has shown one
        self._wake = threading.Condition()
        self._stopping = False
        self._number = 0
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether it is to end."""
        return self._stopping

    def request_stop(self) -> None:
        """Has it end soon; does not wait."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def close(self) -> None:
        """Ends it and waits until it has let go of everything."""
        self.request_stop()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE_S)

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def work(self) -> None:
        """Reads and publishes; RedirtyError and any other error is told by failed()."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Publishes what went wrong; the screen stays."""
        raise NotImplementedError

    def publish(self, snapshot: S) -> None:
        """Makes a snapshot the newest one."""
        self.latest = snapshot
        self.told()

    def next_number(self) -> int:
        """Of the next snapshot."""
        self._number += 1
        return self._number

    def _run(self) -> None:
        try:
            self.work()
        except Exception as e:
            log.debug("%s ended", type(self).__name__, exc_info=True)
            self.failed(e)
