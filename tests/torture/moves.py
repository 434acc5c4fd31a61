"""Relocation of a program's page tables all the while it is recorded, except when it rests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tests.support.relocation_loop import Relocator

_REGIONS = 8  # in a step


class Moves:
    """Relocates page tables in a thread, between start() and close().

    Attributes:
        tables: the number of tables that were made anew.
    """

    def __init__(self, pid: int) -> None:
        self.tables = 0
        self.error: Exception | None = None
        self._relocator = Relocator(pid, _REGIONS)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    self.tables += self._relocator.round()[0]
                self._stop.wait(0.01)  # lets another thread take the lock
        except Exception as e:
            self.error = e

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold all moves; all memory is at its own address meanwhile."""
        with self._lock:
            yield

    def close(self) -> None:
        """End the thread.

        Raises: what the thread ended with.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._relocator.close()
        if self.error is not None:
            raise self.error
