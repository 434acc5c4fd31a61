"""Names of addresses in targets' code, from the symbol reader: a process that can be given up at any time.

Nothing here waits while a recording runs: addresses are requested, and their names arrive later. A reader that
crashes, or that waits for a file of a target which does not come, is killed and replaced, and of the process that
it read it then tells mappings and offsets only.
"""

from __future__ import annotations

import json
import logging
import math
import select
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from redirty.collector.foreign.reader_process import ReaderProcess

log = logging.getLogger(__name__)

_STUCK_S = 3.0  # asleep for so long, without having run: it waits for a file of the target
_POLL_S = 0.1
_HURRIED_S = 1.0
_MAX_ADDRESSES = 32  # in one request: its answer must fit into a datagram
_MAX_ANSWER_BYTES = 1 << 18
_MAX_READERS = 4  # then no more names
_MAX_NAMES = 1 << 20


class _Request(NamedTuple):
    pid: int
    addresses: tuple[int, ...]


class Symbols:
    """Names addresses in processes, while these live; remembers the names."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], str] = {}
        self._waiting: deque[_Request] = deque()
        self._asked: deque[_Request] = deque()
        self._plain: set[int] = set()  # processes whose files are not opened any more
        self._given_up: set[int] = set()  # and those that are not even looked at
        self._reader: ReaderProcess | None = None
        self._readers = 0
        self._hurried = False

    def request(self, pid: int, addresses: Iterable[int]) -> None:
        """Request the names of addresses of a process's code."""
        new = [a for a in dict.fromkeys(addresses) if (pid, a) not in self._known]
        if len(self._known) > _MAX_NAMES:
            self._known.clear()
        for address in new:
            self._known[pid, address] = ""  # requested
        for at in range(0, len(new), _MAX_ADDRESSES):
            self._waiting.append(_Request(pid, tuple(new[at : at + _MAX_ADDRESSES])))
        self.poll()

    def name(self, pid: int, address: int) -> str:
        """Return the function at an address, else its file, else [unknown]; the address until it is known."""
        return self._known.get((pid, address)) or f"{address:#x}"

    def poll(self) -> None:
        """Take the answers that have arrived; replace a reader that does not answer any more."""
        if not self._waiting and not self._asked:
            return
        if self._reader is None:
            if self._readers >= _MAX_READERS:
                self._waiting.clear()
                return
            self._readers += 1
            try:
                self._reader = ReaderProcess("symbol_reader")
            except OSError as e:
                log.info("names of functions cannot be read: %s", e)
                self._readers = _MAX_READERS
                return
        if not self._exchange(self._reader):
            self._replace("crashed")
        elif self._asked and self._reader.asleep_s() > _STUCK_S:
            self._replace("waits for a file of it")

    def _exchange(self, reader: ReaderProcess) -> bool:
        """Send requests and take answers as far as that needs no waiting. Return False if the reader ended."""
        try:
            while self._asked:
                answer = reader.link.recv(_MAX_ANSWER_BYTES)
                if not answer:
                    return False
                self._take(self._asked.popleft(), json.loads(answer))
                reader.awake()
        except BlockingIOError:
            pass
        except OSError:
            return False
        try:
            while self._waiting:
                pid, addresses = self._waiting[0]
                if pid in self._given_up:
                    self._waiting.popleft()
                    continue
                reader.link.send(json.dumps([pid, addresses, pid in self._plain]).encode())
                if not self._asked:
                    reader.awake()
                self._asked.append(self._waiting.popleft())
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _take(self, request: _Request, names: list[str]) -> None:
        for address, name in zip(request.addresses, names, strict=True):
            self._known[request.pid, address] = name.replace(";", ":")

    def _replace(self, reason: str) -> None:
        """End the reader; the first request without an answer is what it failed at."""
        assert self._reader is not None
        self._reader.end()
        self._reader = None
        if self._asked:
            pid = self._asked[0].pid
            (self._given_up if pid in self._plain else self._plain).add(pid)
            log.info("process %d: the symbol reader %s: no names of functions", pid, reason)
        self._waiting.extendleft(reversed(self._asked))
        self._asked.clear()

    def hurry(self) -> None:
        """Let finish() wait a moment only; may be called from a signal handler."""
        self._hurried = True

    def finish(self, limit_s: float = math.inf) -> None:
        """Wait for the names that were requested, as long as they are being read, or until a time limit."""
        self.poll()
        end = time.monotonic() + limit_s
        while self._waiting or self._asked:
            if self._hurried:
                end, self._hurried = min(end, time.monotonic() + _HURRIED_S), False
            if time.monotonic() > end:
                return
            if self._reader is not None:
                select.select([self._reader.link], [], [], _POLL_S)
            self.poll()

    def close(self) -> None:
        """End the reader; names that are known stay."""
        if self._reader is not None:
            self._reader.end()
            self._reader = None
        self._waiting.clear()
        self._asked.clear()
