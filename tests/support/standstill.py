"""Watches from outside for how long a mirror's freezer stops a process."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from types import TracebackType

from tests.support.target_state import is_freezer

_FIELD = re.compile(rb"^(State|TracerPid|voluntary_ctxt_switches):\s*(\S+)", re.MULTILINE)


class Standstill:
    """Samples the state of a process's first thread while the block runs.

    Attributes:
        longest_s: the longest time for which it was seen stopped without having run in between: at most as long as
            the stop really was.
    """

    def __init__(self, pid: int, pause_s: float = 0.0005) -> None:
        self.longest_s = 0.0
        self._status = Path(f"/proc/{pid}/status")
        self._pause_s = pause_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Standstill:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        stop: tuple[bytes, bytes] | None = None  # the freezer, and how often the thread had slept
        since = 0.0
        freezers: dict[bytes, bool] = {}
        while not self._over.wait(self._pause_s):
            before = time.monotonic()
            try:
                found = dict(_FIELD.findall(self._status.read_bytes()))
            except OSError:
                return
            tracer = found[b"TracerPid"]
            if found[b"State"] != b"t" or tracer == b"0":
                stop = None
                continue
            now = tracer, found[b"voluntary_ctxt_switches"]
            if stop == now:
                self.longest_s = max(self.longest_s, before - since)
                continue
            if tracer not in freezers:
                freezers[tracer] = is_freezer(int(tracer))
            stop, since = (now, time.monotonic()) if freezers[tracer] else (None, 0.0)
