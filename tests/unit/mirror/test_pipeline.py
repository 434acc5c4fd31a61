"""The pipeline from the target's pages to an image: contents, hashes, batches, the rate limit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.linux.process_memory import ProcessMemory
from redirty.collector.mirror.image.image import SPACE, Image
from redirty.collector.mirror.pipeline import Pipeline
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.sources.page_hashes import NEVER, PageHashes, hashes_of, zero_pages
from redirty.collector.mirror.transport.local_sink import LocalSink
from redirty.collector.pageset import (
    PAGE_SIZE,
    Bools,
    PageSet,
    empty,
    from_pages,
    page_numbers,
    runs_of,
)

U = np.uint64


def pages(*numbers: int) -> PageSet:
    return from_pages(np.array(numbers, U))


# ---- contents ----


def test_zero_pages_have_a_hash_of_their_own() -> None:
    words = np.zeros((5, 512), U)
    words[1, 511], words[2, 0], words[4, :] = 1, 7, 9
    zero = zero_pages(words)
    assert zero.tolist() == [True, False, False, True, False]
    found = hashes_of([memoryview(row.tobytes()) for row in words], zero)
    assert found[0] == found[3] == 1 and (found[[1, 2, 4]] > 2).all()
    assert len(set(found.tolist())) == 4
    assert zero_pages(np.zeros((3, 512), U)).all()
    assert xxhash.xxh3_64_intdigest(b"") >= 0


def test_hashes_are_remembered_by_page() -> None:
    sent = PageHashes()
    sent.reserve(pages(5, 600))
    sent.record(np.array([5, 600], U), np.array([77, 1], U))
    sent.reserve(pages(1 << 30))  # rows move
    assert sent.get(np.array([5, 6, 600, 1 << 30], U)).tolist() == [77, NEVER, 1, NEVER]
    assert sent.zero_among(pages(5, 600, 601)).tolist() == [600]
    sent.mark_unknown(np.array([5, 1 << 40], U))
    assert sent.get(np.array([5], U)).tolist() == [2]
    sent.mark_never_sent(np.array([5], U))
    assert sent.get(np.array([5], U)).tolist() == [0]


class FakeSource:
    """A source with contents by page; pages that are missing cannot be read."""

    def __init__(self, contents: dict[int, int]) -> None:
        self.number = 1
        self.contents = contents
        self.have = self.pending = self.unread = self.retried = empty()
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()

    def read(
        self, wanted: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], buffer: memoryview
    ) -> Bools:
        view = np.frombuffer(buffer, np.uint8).reshape(-1, PAGE_SIZE)
        good = np.ones(len(wanted), np.bool_)
        for i, page in enumerate(wanted.tolist()):
            good[i] = page in self.contents
            view[i] = self.contents.get(page, 0)
        return good


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 1500), st.integers(0, 3), max_size=400),
        min_size=1,
        max_size=5,
    )
)
def test_an_image_ends_equal_whatever_pages_become(states: list[dict[int, int]]) -> None:
    """Pages change, become zero, vanish and come back; only those that may differ are copied each time."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        image = Image.create(Path(name) / "m", "s" * 16)
        image.declare(1, SPACE)
        pipeline = Pipeline(LocalSink(image, RateLimiter(None)))
        source = FakeSource({})
        for state in states:
            touched = set(state.keys() | source.contents.keys())
            source.contents = state
            source.pending = pages(*touched)
            counts = pipeline.copy([(source, source.pending)])
            assert counts.pages == len(touched)
            assert counts.unread_pages == len(touched - state.keys())
            assert len(source.pending) == 0
            assert set(page_numbers(source.have).tolist()) == state.keys()
        pipeline.close()
        store = image.stores[1]
        filled = {p for w in store.windows for p in store.filled_pages(w).tolist()}
        last = states[-1]
        assert filled == {page for page, value in last.items() if value}
        for page in filled:
            buffer = memoryview(bytearray(PAGE_SIZE))
            store.read_into(np.array([page], U), np.array([1], U), buffer)
            assert buffer[0] == last[page]
        image.discard()


def test_unchanged_pages_are_not_sent_again(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "m", "s" * 16)
    image.declare(1, SPACE)
    pipeline = Pipeline(LocalSink(image, RateLimiter(None)))
    source = FakeSource({1: 5, 2: 6, 3: 0})
    first = pipeline.copy([(source, pages(1, 2, 3))])
    assert (first.sent_pages, first.zero_pages) == (2, 1)
    source.contents[2] = 7
    second = pipeline.copy([(source, pages(1, 2, 3))])
    assert (second.sent_pages, second.unchanged_pages, second.zero_pages) == (1, 1, 1)
    pipeline.close()
    image.discard()


def test_pages_that_are_not_mapped_are_reported_as_unread() -> None:
    import mmap

    area = mmap.mmap(-1, 8 * PAGE_SIZE)
    area[:] = b"q" * (8 * PAGE_SIZE)
    first = np.frombuffer(area, np.uint8).ctypes.data >> 12
    reader = ProcessMemory(os.getpid())
    wanted = np.array([first, first + 1, first + 3, first + (1 << 40)], U)
    buffer = memoryview(bytearray(b"z" * (4 * PAGE_SIZE)))
    assert reader.read(wanted, buffer).tolist() == [True, True, True, False]
    assert bytes(buffer) == b"q" * (3 * PAGE_SIZE) + bytes(PAGE_SIZE)
    reader.close()


def test_runs_are_first_pages_and_lengths() -> None:
    firsts, lengths = runs_of(np.array([3, 4, 5, 9, 11, 12], U))
    assert (firsts.tolist(), lengths.tolist()) == ([3, 9, 11], [3, 1, 2])


# ---- the rate limit ----


@settings(deadline=None)
@given(
    st.floats(1e4, 1e9),
    st.lists(st.integers(1, 1 << 20), min_size=50, max_size=200),
    st.integers(0, 2**32),
)
def test_the_rate_is_kept_however_late_sleeps_end(rate: float, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds + float(rng.exponential(0.0002))

    limiter = RateLimiter(rate, lambda: now[0], sleep)
    for size in sizes:
        limiter.wait(size)
    sent = sum(sizes[:-1])  # the last one was sent just now
    assert now[0] >= sent / rate - 0.02 - 1e-9
    assert now[0] <= sent / rate + 0.02 + 0.01 * len(sizes) / 50


def test_a_long_sleep_ends_when_the_mirror_is_cancelled() -> None:
    """At a few bytes a second a piece waits for hours."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def check() -> None:
        if now[0] > 3:
            raise KeyboardInterrupt

    limiter = RateLimiter(1.0, lambda: now[0], sleep)
    limiter.check = check
    limiter.wait(4096)
    with pytest.raises(KeyboardInterrupt):
        limiter.wait(4096)
    assert now[0] < 4
