"""Page tables of a program that are relocated all the while it is recorded, but when it rests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tests.support.relocation_loop import Relocator

_REGIONS = 8  # of a step


class Moves:
    """A thread that moves, between begin() and close(). tables: how many it made anew."""

    def __init__(self, pid: int) -> None:
        self.tables = 0
        self.error: Exception | None = None
        self._relocator = Relocator(pid, _REGIONS)
        self._may = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def begin(self) -> None:
        """From now on."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                with self._may:
                    self.tables += self._relocator.round()[0]
                self._over.wait(0.01)  # so that others get the lock
        except Exception as e:
            self.error = e

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """All memory is at home, and stays."""
        with self._may:
            yield

    def close(self) -> None:
        """Ends it. Errors: what the thread ended with."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._relocator.close()
        if self.error is not None:
            raise self.error
