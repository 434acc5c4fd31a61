"""Page frames: decoded from pagemap entries, tracked from round to round, and stored in files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.analyze import load
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.linux import capabilities, page_frames
from redirty.collector.linux.page_frames import entries_of, frames_of
from redirty.collector.metrics.frame_tracking import LastFrames, add_up, frames_for
from redirty.collector.pageset import U64, empty, from_pages
from redirty.collector.recording import columns
from redirty.collector.recording.physical import PhysicalFiles, words_of
from redirty.collector.recording.writer import RecordingWriter

from tests.support.factories import meta, one_round, pages

PRESENT, SWAPPED, FILE, SOFT = 1 << 63, 1 << 62, 1 << 61, 1 << 55


def numbers(*values: int) -> U64:
    return np.array(values, np.uint64)


def test_entries() -> None:
    entries = numbers(
        0, PRESENT | 77, PRESENT | FILE | SOFT | 78, SWAPPED | 5, SWAPPED | SOFT | 79 << 5, PRESENT
    )
    assert frames_of(entries).tolist() == [0, 77, 78, 0, 0, 0]
    assert frames_of(entries, ((70, 78),)).tolist() == [0, 0, 78, 0, 0, 0]
    assert frames_of(numbers(PRESENT | (1 << 55) - 1)).tolist() == [(1 << 55) - 1]


@settings(deadline=None)
@given(st.sets(st.integers(0, 30_000), max_size=200), st.integers(0, 30_000))
def test_entries_are_those_of_the_pages(chosen: set[int], end: int) -> None:
    """Entries are read for exactly the pages, however they are split into runs."""

    def read(first: int, into: U64) -> None:
        there = np.arange(first, max(first, min(first + into.size, end)), dtype=np.uint64)
        into.reshape(-1)[: len(there)] = there + np.uint64(1)

    wanted = sorted(chosen)
    found = entries_of(read, from_pages(np.array(wanted, np.uint64)))
    assert found.tolist() == [page + 1 if page < end else 0 for page in wanted]


def test_long_runs_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_frames, "_REGIONS_A_PART", 3)
    asked: list[int] = []

    def read(first: int, into: U64) -> None:
        asked.append(into.size)
        into.reshape(-1)[:] = np.arange(first, first + into.size, dtype=np.uint64)

    wanted = np.arange(100, 5000, dtype=np.uint64)
    assert (entries_of(read, from_pages(wanted)) == wanted).all()
    assert len(asked) == 4 and max(asked) == 3 * 512


ROUNDS = st.lists(st.dictionaries(st.integers(0, 40), st.integers(0, 5), max_size=20), max_size=8)


@settings(deadline=None)
@given(ROUNDS)
def test_news_is_what_a_dictionary_would_say(rounds: list[dict[int, int]]) -> None:
    last, model = LastFrames(), dict[int, int]()
    for found in rounds:
        order = sorted(found)
        news = last.update(numbers(*order), numbers(*(found[page] for page in order)))
        assert news.tolist() == [page not in model or model[page] != found[page] for page in order]
        model |= found


def test_a_frame_counts_once_however_often_it_is_mapped() -> None:
    first, second = LastFrames(), LastFrames()
    one = (7, first, numbers(1, 2, 3), numbers(500, 501, 0))
    other = (8, second, numbers(1, 9), numbers(501, 0))
    found = add_up([one, other])
    assert found.frames == pages(500, 501)
    assert found.frameless == 2
    assert [(m.pid, m.pages.tolist(), m.frames.tolist()) for m in found.moved] == [
        (7, [1, 2, 3], [500, 501, 0]),
        (8, [1, 9], [501, 0]),
    ]
    assert add_up([one, other]).moved == ()
    assert add_up([]).frames == empty()


def test_memory_that_is_gone_lies_nowhere() -> None:
    where, at = frames_for(None, pages(4, 5), ())
    assert (where.tolist(), at.tolist()) == ([4, 5], [0, 0])


@settings(deadline=None)
@given(st.sets(st.integers(0, 10_000), max_size=300))
def test_bitmaps_come_back(chosen: set[int]) -> None:
    firsts, bits = words_of(from_pages(np.array(sorted(chosen), np.uint64)))
    frame = pd.DataFrame({"first_pfn": firsts, "bits": bits})
    assert load.frame_numbers(frame).tolist() == sorted(chosen)
    assert load.frame_numbers(pd.concat([frame, frame])).tolist() == sorted(chosen)
    assert (firsts % 64 == 0).all() and (bits != 0).all()


def test_the_lowest_bit_is_the_first_frame() -> None:
    firsts, bits = words_of(pages(512, 521, 639, 1023))
    assert firsts.tolist() == [512, 576, 960]
    assert bits.tolist() == [1 | 1 << 9, 1 << 63, 1 << 63]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Record a page that moves and then loses its frame, and one that stays."""
    directory = tmp_path / "rec"
    made = RecordingWriter(directory, meta())
    physical = PhysicalFiles(made.folder)
    last = LastFrames()
    for number, at in enumerate(([500, 501], [600, 501], [0, 501])):
        found = add_up([(4321, last, numbers(16, 17), numbers(*at))])
        physical.add(number, found)
        result = one_round(number, log=pages(16, 17), missed=pages(), present=pages())
        made.add(result, found)
    physical.close()
    made.close(complete=True)
    return directory


def test_the_side_list_has_what_is_news(recorded: Path) -> None:
    table = load.load_frames(recorded)
    rows = [
        (r, p, a, None if pd.isna(f) else int(f))
        for r, p, a, f in table.itertuples(index=False, name=None)
    ]
    assert rows == [
        (0, 4321, 0x10000, 500),
        (0, 4321, 0x11000, 501),
        (1, 4321, 0x10000, 600),
        (2, 4321, 0x10000, None),
    ]
    for number, expected in ((0, [500, 501]), (1, [600, 501]), (2, [None, 501]), (9, [None, 501])):
        at = load.load_frames(recorded, number).sort_values("address")["pfn"]
        assert [None if pd.isna(f) else int(f) for f in at] == expected
    bitmap = load.load_physical(recorded)
    assert load.frame_numbers(bitmap).tolist() == [500, 501, 600]
    table = pd.read_csv(recorded / "rounds.csv")
    assert table["dirty_frames"].tolist() == [2, 2, 1]
    assert table["frameless_pages"].tolist() == [0, 0, 1]
    for name in ("physical.parquet", "frames.parquet"):
        assert stat.S_IMODE((recorded / name).stat().st_mode) == 0o600


def test_a_recording_that_was_cut_off(tmp_path: Path) -> None:
    """The parts of such a recording are read; a round without a row in rounds.csv does not count."""
    files = PhysicalFiles(Folder.hold(tmp_path))
    files.add(0, add_up([(1, LastFrames(), numbers(5), numbers(50))]))
    files.flush()
    files.add(1, add_up([(1, LastFrames(), numbers(6), numbers(60))]))
    names = columns.ROUNDS[: columns.ROUNDS.index("new_pages") + 1]
    row = ",".join(["0", "0.0", "1.0", "0.001", *["1"] * (len(names) - 4)])
    (tmp_path / "rounds.csv").write_text(f"{','.join(names)}\r\n{row}\r\n")
    assert load.load_frames(tmp_path)["pfn"].tolist() == [50]
    assert load.frame_numbers(load.load_physical(tmp_path)).tolist() == [50]


def test_recorded_without(tmp_path: Path) -> None:
    for loader in (load.load_frames, load.load_physical):
        with pytest.raises(RedirtyError, match="record with --physical"):
            loader(tmp_path)


def test_frames_that_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hidden:
        def __init__(self, *_: object, **__: object) -> None: ...

        def entries(self, _first: int, count: int) -> U64:
            return np.full(count, PRESENT, np.uint64)

        def close(self) -> None: ...

    monkeypatch.setattr(page_frames, "Pagemap", Hidden)
    for lacking, expected in ((None, "shows no frame numbers"), ("CAP_X, which", "needs CAP_X")):
        monkeypatch.setattr(capabilities, "root_lacks", lambda _, lacking=lacking: lacking)
        with pytest.raises(RedirtyError, match=expected):
            page_frames.require_frames()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: frames are hidden from others")
def test_the_kernels_zeros() -> None:
    sizes = sorted(end - first for first, end in page_frames.zero_frames())
    assert sizes in ([1], [1, 512])
