"""A pass over pages: reads, compares and sends them, as a pipeline with a fixed number of buffers.

Threads read and compare while the caller sends. Memory is bounded by the buffers, regardless of the size of the target.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from redirty.collector.mirror.sources.page_hashes import NEVER, hashes_of, zero_pages
from redirty.collector.mirror.sources.source import Source
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import PAGE_SIZE, U64, PageSet, from_pages, page_numbers, runs_of

# The fixed overhead of a batch is that of reading 100 pages.
BATCH_PAGES = 768
_MIN_PAGES = 16
# How long a batch takes on the link: sending a page is wasted if it is written between the read and the send.
_BATCH_S = 0.005
# But at least this multiple of a batch's own overhead, which would be the bottleneck otherwise.
_OVERHEAD_FACTOR = 4
_REGIONS = 256  # regions whose page numbers are expanded at once
_WORKERS = 2  # in addition to the thread that sends
_BUFFERS = 4
# Batches whose page numbers are collected before they are applied to the source.
_APPLY_BATCHES = 256

Job = tuple[Source, PageSet]
_Done = dict[int, tuple[Source, list[U64], list[U64]]]
"""By source number: the source, and page numbers of batches that were read and that could not be read."""


@dataclass
class PassCounts:
    """Pages of a pass by how they were handled.

    Attributes:
        pages: all pages processed.
        sent_pages: pages sent with contents.
        zero_pages: pages that are all zero.
        unchanged_pages: pages with the contents that were sent before.
        unread_pages: pages unmapped meanwhile, or not readable.
        batches: number of batches.
        link_s: time spent waiting for the link or the receiver.
    """

    pages: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    unchanged_pages: int = 0
    unread_pages: int = 0
    batches: int = 0
    link_s: float = 0.0


class _Buffer:
    """A buffer for a batch. pages: a view of each page of data, made once as each is hashed for every batch."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(BATCH_PAGES * PAGE_SIZE))
        self.pages = [self.data[at : at + PAGE_SIZE] for at in range(0, len(self.data), PAGE_SIZE)]


@dataclass(eq=False)
class _Batch:
    """A batch that was read and compared.

    Attributes:
        source: the source of its pages.
        buffer: holds data.
        pages: pages to send with contents.
        data: these contents.
        zero: pages to report as zero.
        unread: pages that could not be read.
        hashes: hashes of all pages that were read.
        read: all pages that were read.
        unchanged: number of pages with the contents that were sent before.
    """

    source: Source
    buffer: _Buffer
    pages: U64
    data: memoryview
    zero: U64
    unread: U64
    hashes: U64
    read: U64
    unchanged: int


def batch_pages(rate: float, overhead_s: float) -> int:
    """Return the number of pages per batch.

    Args:
        rate: rate of the link, bytes a second.
        overhead_s: time per batch, not counting the wait for the link.
    """
    seconds = max(_BATCH_S, _OVERHEAD_FACTOR * overhead_s)
    return int(min(max(rate * seconds / PAGE_SIZE, _MIN_PAGES), BATCH_PAGES))


def batches(jobs: Iterable[Job], size: int = BATCH_PAGES) -> Iterator[tuple[Source, U64]]:
    """Yield the pages of jobs in batches of up to `size` pages."""
    for source, pages in jobs:
        for at in range(0, len(pages.keys), _REGIONS):
            part = PageSet(pages.keys[at : at + _REGIONS], pages.words[at : at + _REGIONS])
            numbers = page_numbers(part)
            for a in range(0, len(numbers), size):
                yield source, numbers[a : a + size]


class Pipeline:
    """Copies pages to a sink.

    Attributes:
        counts: counts of the last copy(), even if it failed.
    """

    def __init__(
        self, sink: PageSink, compress: Callable[[memoryview], memoryview] | None = None
    ) -> None:
        """Start with a sink, and a function that compresses page contents (None: no compression)."""
        self._sink = sink
        self._compress = compress
        self._buffers = [_Buffer() for _ in range(_BUFFERS)]
        self.counts = PassCounts()
        self._pool = ThreadPoolExecutor(_WORKERS, "reader")

    def copy(
        self,
        jobs: Sequence[Job],
        check: Callable[[], None] = lambda: None,
        size: int = BATCH_PAGES,
    ) -> PassCounts:
        """Copy the pages of jobs, in this order.

        Args:
            jobs: sources and their pages.
            check: called after each batch; ends the copy by an exception.
            size: pages per batch, at most BATCH_PAGES.

        Raises:
            ConnectionLostError: the sink lost its connection. Pages that were sent are noted as sent; the others
                are still pending. A RedirtyError of the sink has the same effect.
        """
        counts = self.counts = PassCounts()
        for source, pages in jobs:
            source.sent.reserve(pages)
        done: _Done = {}
        waiting: deque[Future[_Batch]] = deque()
        free = list(self._buffers)
        try:
            for source, numbers in batches(jobs, size):
                if not free:
                    free.append(self._send(waiting.popleft().result(), counts, done))
                    check()
                waiting.append(self._pool.submit(self._prepare, source, numbers, free.pop()))
            while waiting:
                self._send(waiting.popleft().result(), counts, done)
                check()
        finally:
            wait(waiting)  # the workers write to buffers that are reused
            for source, read, unread in done.values():
                _apply(source, np.concatenate(read), np.concatenate(unread))
        return counts

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def _prepare(self, source: Source, pages: U64, buffer: _Buffer) -> _Batch:
        """Read pages, and leave out those that need not be sent."""
        view = buffer.data[: len(pages) * PAGE_SIZE]
        good = source.read(pages, view)
        contents = np.frombuffer(view, np.uint64).reshape(-1, PAGE_SIZE // 8)
        zero = zero_pages(contents)
        hashes = hashes_of(buffer.pages[: len(pages)], zero)
        before = source.sent.get(pages)
        same = hashes == before
        # Zero pages need not be reported where nothing was sent before.
        report = good & zero & ~same & (before != NEVER)
        send = good & ~zero & ~same
        if send.all():
            data = view
        elif send.any():
            count = int(send.sum())
            np.frombuffer(view, np.uint64).reshape(-1, PAGE_SIZE // 8)[:count] = contents[send]
            data = view[: count * PAGE_SIZE]
        else:
            data = view[:0]
        if self._compress is not None and len(data):
            data = self._compress(data)
        return _Batch(
            source=source,
            buffer=buffer,
            pages=pages[send],
            data=data,
            zero=pages[report],
            unread=pages[~good],
            hashes=hashes[good],
            read=pages[good],
            unchanged=int((same & good & ~zero).sum()),
        )

    def _send(self, batch: _Batch, counts: PassCounts, done: _Done) -> _Buffer:
        """Send a batch, and return its buffer."""
        source, sink = batch.source, self._sink
        if len(batch.pages):
            raw = len(batch.pages) * PAGE_SIZE
            started, cpu_before = time.monotonic(), time.thread_time()
            sink.write(source.number, *runs_of(batch.pages), batch.data, raw)
            counts.link_s += (time.monotonic() - started) - (time.thread_time() - cpu_before)
        zero = np.union1d(batch.zero, batch.unread)
        if len(zero):
            sink.zero(source.number, *runs_of(zero))
        source.sent.record(batch.read, batch.hashes)
        source.sent.record(batch.unread, np.zeros(len(batch.unread), np.uint64))
        _, read, unread = done.setdefault(source.number, (source, [], []))
        read.append(batch.read)
        unread.append(batch.unread)
        if len(read) >= _APPLY_BATCHES:
            _apply(source, np.concatenate(read), np.concatenate(unread))
            del done[source.number]
        counts.batches += 1
        counts.pages += len(batch.read) + len(batch.unread)
        counts.sent_pages += len(batch.pages)
        counts.unchanged_pages += batch.unchanged
        counts.zero_pages += len(batch.read) - len(batch.pages) - batch.unchanged
        counts.unread_pages += len(batch.unread)
        return batch.buffer


def _apply(source: Source, read: U64, unread: U64) -> None:
    """Note that pages are at the other end, or could not be read, and so are no longer pending."""
    have, lost = from_pages(read), from_pages(unread)
    source.have = (source.have | have) - lost
    source.unread = (source.unread - have) | lost
    source.pending = source.pending - have - lost
