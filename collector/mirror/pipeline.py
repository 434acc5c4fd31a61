"""One pass: pages are read, compared and sent, as a pipeline with a set number of buffers.

Threads read and compare while one sends. Memory is bounded by the buffers,
whatever the target has.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.sources.page_hashes import NEVER, hashes_of, zero_pages
from redirty.collector.mirror.sources.source import Source
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import U64, PageSet, empty, from_pages, page_numbers, runs_of

# What is done for a batch, whatever its size, takes as long as reading 100 pages.
BATCH_PAGES = 768
_LEAST_PAGES = 16
# A page that is read long before it can be sent is sent in vain when it is written meanwhile.
_BATCH_S = 0.005
_OWN_TIMES = 4  # but so many times what we need for a batch ourselves, or that would be the limit
_REGIONS = 256  # whose page numbers are made at once
_WORKERS = 2  # beside the thread that sends
_BUFFERS = 4
_SETTLE_BATCHES = 256  # whose page numbers are kept, before they become bits

Job = tuple[Source, PageSet]
_Done = dict[int, tuple[Source, list[U64], list[U64]]]
"""By source number, what was read and what could not be."""


@dataclass
class PassCounts:
    """What became of the pages of a pass. unread: unmapped meanwhile, or not readable. link_s: for how long
    the other end, or the link, was waited for."""

    pages: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    unchanged_pages: int = 0
    unread_pages: int = 0
    batches: int = 0
    link_s: float = 0.0
    # by source number; only kept when asked for
    sent: dict[int, PageSet] = field(default_factory=dict)


class _Buffer:
    """pages: of data, made once, as a hash of each is asked for again and again."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(BATCH_PAGES * PAGE))
        self.pages = [self.data[at : at + PAGE] for at in range(0, len(self.data), PAGE)]


@dataclass(eq=False)
class _Batch:
    source: Source
    buffer: _Buffer
    pages: U64  # sent
    data: memoryview
    zero: U64  # told as zero
    unread: U64
    hashes: U64  # of all that was read
    read: U64
    unchanged: int


def batch_pages(rate: float, own_s: float) -> int:
    """How many pages are read at once, for a link of so many bytes a second. own_s: what a batch took beside
    waiting for the link."""
    seconds = max(_BATCH_S, _OWN_TIMES * own_s)
    return int(min(max(rate * seconds / PAGE, _LEAST_PAGES), BATCH_PAGES))


def batches(jobs: Iterable[Job], size: int = BATCH_PAGES) -> Iterator[tuple[Source, U64]]:
    """Pages of jobs in pieces of size pages."""
    for source, pages in jobs:
        for at in range(0, len(pages.keys), _REGIONS):
            part = PageSet(pages.keys[at : at + _REGIONS], pages.words[at : at + _REGIONS])
            numbers = page_numbers(part)
            for a in range(0, len(numbers), size):
                yield source, numbers[a : a + size]


class Pipeline:
    """compress: from contents to what is sent instead, None without. keep_lists: whether PassCounts.sent is
    filled."""

    def __init__(
        self,
        sink: PageSink,
        compress: Callable[[memoryview], memoryview] | None = None,
        *,
        keep_lists: bool = False,
    ) -> None:
        self._sink = sink
        self._compress = compress
        self._keep_lists = keep_lists
        self._buffers = [_Buffer() for _ in range(_BUFFERS)]
        self.counts = PassCounts()  # of the last copy, also of one that did not end well
        self._pool = ThreadPoolExecutor(_WORKERS, "reader")

    def copy(
        self,
        jobs: Sequence[Job],
        give_up: Callable[[], None] = lambda: None,
        size: int = BATCH_PAGES,
    ) -> PassCounts:
        """Copies the pages of jobs, in this order. give_up() is called now and then, and ends it by an
        exception. size: pages that are read at once, at most BATCH_PAGES.

        Errors: those of the sink; then some pages were sent, and noted as sent, others not.
        """
        counts = self.counts = PassCounts()
        for source, pages in jobs:
            source.sent.make_room(pages)
        done: _Done = {}
        waiting: deque[Future[_Batch]] = deque()
        free = list(self._buffers)
        try:
            for source, numbers in batches(jobs, size):
                if not free:
                    free.append(self._send(waiting.popleft().result(), counts, done))
                    give_up()
                waiting.append(self._pool.submit(self._prepare, source, numbers, free.pop()))
            while waiting:
                self._send(waiting.popleft().result(), counts, done)
                give_up()
        finally:
            wait(waiting)  # they write into buffers that are used again
            for source, read, unread in done.values():
                _settle(source, np.concatenate(read), np.concatenate(unread))
        return counts

    def close(self) -> None:
        """Ends its threads."""
        self._pool.shutdown()

    def _prepare(self, source: Source, pages: U64, buffer: _Buffer) -> _Batch:
        """Reads pages, and sorts out those that need not be sent."""
        view = buffer.data[: len(pages) * PAGE]
        good = source.read(pages, view)
        contents = np.frombuffer(view, np.uint64).reshape(-1, PAGE // 8)
        zero = zero_pages(contents)
        hashes = hashes_of(buffer.pages[: len(pages)], zero)
        before = source.sent.of(pages)
        same = hashes == before
        # Zero pages need no word where nothing was sent before.
        told = good & zero & ~same & (before != NEVER)
        send = good & ~zero & ~same
        if send.all():
            data = view
        elif send.any():
            count = int(send.sum())
            np.frombuffer(view, np.uint64).reshape(-1, PAGE // 8)[:count] = contents[send]
            data = view[: count * PAGE]
        else:
            data = view[:0]
        if self._compress is not None and len(data):
            data = self._compress(data)
        return _Batch(
            source=source,
            buffer=buffer,
            pages=pages[send],
            data=data,
            zero=pages[told],
            unread=pages[~good],
            hashes=hashes[good],
            read=pages[good],
            unchanged=int((same & good & ~zero).sum()),
        )

    def _send(self, batch: _Batch, counts: PassCounts, done: _Done) -> _Buffer:
        """Sends a batch, and returns its buffer."""
        source, sink = batch.source, self._sink
        if len(batch.pages):
            raw = len(batch.pages) * PAGE
            begun, used = time.monotonic(), time.thread_time()
            sink.write(source.number, *runs_of(batch.pages), batch.data, raw)
            counts.link_s += (time.monotonic() - begun) - (time.thread_time() - used)
        zero = np.union1d(batch.zero, batch.unread)
        if len(zero):
            sink.zero(source.number, *runs_of(zero))
        source.sent.note(batch.read, batch.hashes)
        source.sent.note(batch.unread, np.zeros(len(batch.unread), np.uint64))
        _, read, unread = done.setdefault(source.number, (source, [], []))
        read.append(batch.read)
        unread.append(batch.unread)
        if len(read) >= _SETTLE_BATCHES:
            _settle(source, np.concatenate(read), np.concatenate(unread))
            del done[source.number]
        counts.batches += 1
        counts.pages += len(batch.read) + len(batch.unread)
        counts.sent_pages += len(batch.pages)
        counts.unchanged_pages += batch.unchanged
        counts.zero_pages += len(batch.read) - len(batch.pages) - batch.unchanged
        counts.unread_pages += len(batch.unread)
        if self._keep_lists:
            old = counts.sent.get(source.number, empty())
            counts.sent[source.number] = old | from_pages(batch.pages)
        return batch.buffer


def _settle(source: Source, read: U64, unread: U64) -> None:
    """What was dealt with is had, or not there, and is not to be sent any more."""
    have, lost = from_pages(read), from_pages(unread)
    source.have = (source.have | have) - lost
    source.pending = source.pending - have - lost
