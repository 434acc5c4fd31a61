"""Page stores of a receiver, and the journals by which it resumes after it was killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.journal import NAME, Journal
from redirty.collector.mirror.image.page_store import PageStore, StoreError
from redirty.collector.pageset import PAGE_SIZE

U = np.uint64


# ---- stores ----


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.integers(0, 40), st.integers((1 << 18) - 8, (1 << 18) + 8), st.just(1 << 40)
            ),
            st.integers(1, 12),
        ),
        max_size=25,
    )
)
def test_a_store_has_the_contents_that_were_written(steps: list[tuple[bool, int, int]]) -> None:
    fd = os.memfd_create("store")
    store, truth = PageStore(fd, 1 << 16), {}
    for n, (write, first, length) in enumerate(steps):
        runs = np.array([first], U), np.array([length], U)
        if write:
            for window in store.new_windows(*runs):
                store.open_window(window)
            data = bytes([n % 250 + 1]) * (length * PAGE_SIZE)
            store.write(*runs, memoryview(data))
        else:
            store.zero(*runs)
        for page in range(first, first + length):
            truth[page] = n % 250 + 1 if write else 0
    filled = {p for w in store.windows for p in store.filled_pages(w).tolist()}
    assert filled == {page for page, value in truth.items() if value}
    for page in filled:
        buffer = memoryview(bytearray(PAGE_SIZE))
        store.read_into(np.array([page], U), np.array([1], U), buffer)
        assert bytes(buffer) == bytes([truth[page]]) * PAGE_SIZE
    reopened = PageStore(os.dup(fd), 1 << 16, store.windows)
    reopened.find_filled()
    found = {p for w in reopened.windows for p in reopened.filled_pages(w).tolist()}
    assert found >= filled  # a file system may report more data than there is, never less
    reopened.close()
    store.close()


def test_a_store_refuses_pages_beyond_its_limits() -> None:
    store = PageStore(os.memfd_create("store"), 0)
    with pytest.raises(StoreError):
        store.new_windows(np.array([1 << 60], U), np.array([1], U))
    many = np.arange(9000, dtype=U) << U(18)
    with pytest.raises(StoreError):
        store.new_windows(many, np.ones(9000, U))
    store.close()


# ---- journals ----


def test_an_image_resumes_after_a_kill(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "m", "s" * 16)
    image.declare(1, SPACE)
    image.declare(2, FILE)
    one = np.array([5, 1 << 30], U), np.array([2, 1], U)
    image.write(1, *one, memoryview(b"x" * (3 * PAGE_SIZE)))
    image.journal.done(7)
    digest = image.digest()
    image.close()
    found = Image.resume(Folder.open_own(tmp_path / "m"))
    assert (found.done, found.session) == (7, "s" * 16)
    assert found.kinds == {1: SPACE, 2: FILE}
    assert found.digest() == digest
    found.discard()
    assert not (tmp_path / "m").exists()


@settings(deadline=None, max_examples=50)
@given(cut=st.integers(0, 28 * 4), damage=st.integers(0, 28 * 4 - 1))
def test_a_journal_ends_at_the_first_damaged_record(
    cut: int, damage: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    folder, path = Folder.hold(directory), directory / NAME
    journal = Journal.create(folder, "s" * 16)
    journal.source(1, SPACE)
    for number in (1, 2, 3):
        journal.done(number)
    journal.close()
    data = bytearray(path.read_bytes())
    data[4096 + damage] ^= 0x55
    path.write_bytes(data[: 4096 + cut])
    reopened, found = Journal.open(folder)
    reopened.close()
    whole = min(cut // 28, damage // 28)
    assert found.done == max(whole - 1, 0)


def test_a_journal_of_another_boot_is_refused(tmp_path: Path) -> None:
    folder = Folder.hold(tmp_path)
    journal = Journal.create(folder, "s" * 16)
    journal.close()
    path = tmp_path / NAME
    data = path.read_bytes()
    at = data.index(b'"boot": "') + 9
    path.write_bytes(data[:at] + b"00000000" + data[at + 8 :])
    with pytest.raises(RedirtyError, match="from before the last boot of this machine"):
        Journal.open(folder)


def test_a_commit_cannot_be_resumed(tmp_path: Path) -> None:
    folder = Folder.hold(tmp_path)
    journal = Journal.create(folder, "s" * 16)
    journal.end()
    journal.close()
    with pytest.raises(RedirtyError, match="commit"):
        Journal.open(folder)
