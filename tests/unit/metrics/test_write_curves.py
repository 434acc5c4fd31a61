"""Tests of points of write curves: inside rounds, and of windows compared with plain sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.analyze import load
from redirty.collector.bpf import abi
from redirty.collector.linux.maps import CLASSES, Mappings
from redirty.collector.metrics.write_curves import Point, WindowCurves, inside, thinned
from redirty.collector.pageset import PageSet
from redirty.collector.recording.writer import RecordingWriter
from redirty.collector.tracking.first_writes import FirstWrites
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.factories import MAPPINGS, meta, one_round, pages
from tests.support.known_writers import windows_of

CLASS_OF = {"anon_private": range(0x10, 0x20), "file_shared": range(0x20, 0x30)}


Key = tuple[int, int]  # process and address space


def a_round(number: int, written: dict[Key, set[int]], present: dict[Key, set[int]]) -> Round:
    """Make a round of some address spaces, without a histogram."""
    spaces = []
    for key, numbers in written.items():
        dirty, there = pages(*numbers), pages(*present.get(key, set()))
        spaces.append(
            SpaceRound(
                pid=key[0], space=key[1], mappings=MAPPINGS, present=there, log=dirty,
                missed=pages(), dirty=dirty, redirtied=dirty & there, scanned_pages=len(dirty),
                stats=np.zeros(1, abi.STATS),
            )
        )  # fmt: skip
    return Round(number, number * 1.0, 1.0, 0.0, tuple(spaces), np.zeros(2, abi.STATS))


@pytest.mark.parametrize("rounds", [1, 2, 3, 16, 17, 75])
def test_windows_are_unions_of_rounds(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    written = [set(rng.integers(0x10, 0x30, 4).tolist()) for _ in range(rounds)]
    present = [set(rng.integers(0x10, 0x30, 12).tolist()) for _ in range(rounds)]
    windows = WindowCurves()
    found: dict[tuple[int, int, str], Point] = {}
    for number in range(rounds):
        for point in windows.add(
            a_round(number, {(7, 7): written[number]}, {(7, 7): present[number]})
        ).points:
            found[point.round, point.rounds, point.mapping_class] = point
    assert {key[:2] for key in found} == set(windows_of(rounds))
    for (first, length, name), point in found.items():
        union = set().union(*written[first : first + length])
        union &= set(CLASS_OF.get(name, range(0x10, 0x30)))
        assert point.dirty == len(union)
        assert point.redirtied == len(union & present[first])
        assert point.elapsed_s == pytest.approx(length)
    powers = {key[:2] for key in found if key[2]}
    assert powers == {run for run in windows_of(rounds) if run[1] & (run[1] - 1) == 0}


def test_windows_over_processes_that_come_and_go() -> None:
    """Pages of a process that started meanwhile are new; those of one that ended still count."""
    windows = WindowCurves()
    rounds = [
        a_round(0, {(7, 7): {0x10, 0x11}, (8, 8): {0x10}}, {(7, 7): {0x10}, (8, 8): {0x10}}),
        a_round(
            1, {(7, 7): {0x11, 0x12}, (9, 9): {0x10, 0x20}}, {(7, 7): {0x10, 0x11}, (9, 9): {0x10}}
        ),
    ]
    points = [point for result in rounds for point in windows.add(result).points]
    (both,) = (p for p in points if p.rounds == 2 and not p.mapping_class)
    assert (both.dirty, both.redirtied) == (3 + 1 + 2, 1 + 1)


def test_a_window_needs_its_start() -> None:
    """The first round need not be number 0."""
    windows = WindowCurves()
    points = [
        p for n in range(3, 9) for p in windows.add(a_round(n, {(7, 7): {n + 0x10}}, {})).points
    ]
    longer = {(p.round, p.rounds) for p in points if p.rounds > 1 and not p.mapping_class}
    assert longer == {(4, 2), (6, 2), (4, 3), (4, 4)}


@given(
    st.lists(st.tuples(*[st.sets(st.integers(0x10, 0x2F), max_size=9)] * 3), max_size=24),
)
def test_working_sets_are_unions(rounds: list[tuple[set[int], ...]]) -> None:
    """Working sets are counted for two processes, one of which has two address spaces."""
    windows, found = WindowCurves(), set()
    spaces = ((1, 10), (1, 11), (2, 20))
    split = [dict(zip(spaces, written, strict=True)) for written in rounds]
    for number, by_space in enumerate(split):
        for w in windows.add(a_round(number, by_space, {})).working_sets:
            found.add((w.first_round, w.rounds, w.pid, w.dirty_pages))
    truth = set()
    length = 2
    while length <= len(rounds):
        for first in range(0, len(rounds) - length + 1, length):
            for pid in (1, 2):
                distinct = {
                    (key, page)
                    for by_space in split[first : first + length]
                    for key, written in by_space.items()
                    for page in written
                    if key[0] == pid
                }
                if distinct:
                    truth.add((first, length, pid, len(distinct)))
        length *= 2
    assert found == truth


def with_first_writes(result: Round, found: FirstWrites) -> Round:
    """Return the round with times of writes around its arm."""
    (space,) = result.spaces
    return replace(result, spaces=(replace(space, first_writes=found),))


def test_inside_a_round() -> None:
    """Times count from when a page was protected; missed pages are spread like the others; raced ones left out."""
    result = one_round(0, log=pages(16, 17, 18, 19, 33), missed=pages(34), present=pages())
    hist = result.stats["hist"]
    hist[:] = 0
    edges = abi.hist_edges_ns() / 1e9
    late, lag_s = 200, 0.0002
    hist[1, late] = result.spaces[0].stats["hist"][0, late] = 2
    result.spaces[0].stats["hist"][0, :late] = 0
    found = FirstWrites(np.array([0.001, 0.002]), lag_s, pages(33))
    points = list(inside(with_first_writes(result, found)))
    times = np.array([p.elapsed_s for p in points])
    count = np.array([p.dirty for p in points])
    assert {(p.round, p.rounds, p.mapping_class, p.redirtied) for p in points} == {(0, 0, "", None)}
    scale = 5 / 4  # 6 dirty pages, one of them raced, and 4 with a time
    assert edges[edges > 0.001][0] <= times[0] <= edges[edges > 0.001][1]
    assert count[0] == pytest.approx(scale)
    between = (times > 0.0022) & (times < edges[late - 1])
    assert between.any() and count[between] == pytest.approx(2 * scale)
    assert (count[times >= edges[late] + lag_s] == 5).all()
    at = np.interp(edges[late] + lag_s * 0.9, times, count)
    assert at < 5, "the end of a slot is as much later as its pages were protected earlier"
    assert (np.diff(times) > 0).all() and (np.diff(count) >= 0).all()
    assert times[-1] < result.duration_s
    assert len(points) < 25, "of a stretch with nothing in it both ends tell all"


def test_raced_pages_of_windows() -> None:
    """Count those of the window's first round that are not written later in it."""
    windows = WindowCurves()
    raced = [{16, 17, 18}, {19}, set(), set()]
    written = [{16, 17, 18, 20}, {16, 19}, {17}, {30}]
    found = {}
    for number, (early, dirty) in enumerate(zip(raced, written, strict=True)):
        result = one_round(number, log=pages(*dirty), missed=pages(), present=pages())
        result = with_first_writes(result, FirstWrites(np.empty(0), 0.0, pages(*early)))
        for point in windows.add(result).points:
            if not point.mapping_class:
                found[point.round, point.rounds] = point.raced
    assert found == {
        (0, 1): 3, (1, 1): 1, (2, 1): 0, (3, 1): 0, (0, 2): 2, (2, 2): 0, (0, 3): 1, (0, 4): 1,
    }  # fmt: skip


def test_raced_pages_are_not_known_unless_they_are_of_all() -> None:
    result = one_round(0, log=pages(16), missed=pages(), present=pages())
    assert [p.raced for p in WindowCurves().add(result).points if not p.mapping_class] == [None]


@pytest.mark.parametrize("rate", [0.0, 100.0, 1e6])
def test_redundant_points_are_omitted(rate: float) -> None:
    times = np.geomspace(1e-4, 1.0, 107)
    for count, most in ((rate * times, 12), (5000 * -np.expm1(-rate * times / 5000), 60)):
        t, w = thinned(times, count)
        assert len(t) <= most
        assert (t[0], t[-1]) == (times[0], times[-1])
        off = np.abs(np.interp(times, t, w) - count)
        assert (off <= np.maximum(2.0, 0.01 * count)).all()


def test_a_round_with_nothing_logged_has_no_inside() -> None:
    result = one_round(0, log=pages(), missed=pages(5), present=pages())
    assert list(inside(result)) == []


def test_class_ranges() -> None:
    ranges = dict(zip(CLASSES, MAPPINGS.class_ranges, strict=True))
    assert [a.tolist() for a in ranges["anon_private"]] == [[0x10], [0x20]]
    assert [a.tolist() for a in ranges["file_private"]] == [[0x30], [0x31]]
    assert [a.tolist() for a in ranges["anon_shared"]] == [[], []]
    near = Mappings.of(
        tuple(m._replace(start=a, end=b) for m, a, b in (
            (MAPPINGS.items[0], 0x1000, 0x3000), (MAPPINGS.items[0], 0x3000, 0x4000),
            (MAPPINGS.items[1], 0x4000, 0x5000), (MAPPINGS.items[0], 0x5000, 0x6000),
        ))
    )  # fmt: skip
    starts, ends = near.class_ranges[CLASSES.index("anon_private")]
    assert (starts.tolist(), ends.tolist()) == ([1, 5], [4, 6])
    assert all(len(a) == 0 for pair in Mappings.of(()).class_ranges for a in pair)


# ---- on disk ----


def recorded(directory: Path, rounds: int = 8) -> Path:
    made = RecordingWriter(directory, meta())
    for number in range(rounds):
        log = pages(16, 17 + number % 4, 33)
        made.add(one_round(number, log=log, missed=pages(), present=pages(16)))
    made.close(complete=True)
    return directory


def test_written_and_loaded(tmp_path: Path) -> None:
    frame = load.load_curves(recorded(tmp_path / "rec"))
    ends = frame[(frame["rounds"] > 0) & (frame["mapping_class"] == "")]
    assert set(zip(ends["round"], ends["rounds"], strict=True)) == set(windows_of(8))
    eight = ends[ends["rounds"] == 8].iloc[0]
    assert (eight["elapsed_s"], eight["dirty_pages"], eight["redirtied_pages"]) == (8.0, 6, 1)
    inner = frame[frame["rounds"] == 0]
    assert len(inner) > 0 and inner["redirtied_pages"].isna().all()
    assert set(frame["mapping_class"]) == {"", "anon_private", "file_shared"}


def test_incomplete_rounds_are_omitted(tmp_path: Path) -> None:
    directory = recorded(tmp_path / "rec")
    rows = (directory / "rounds.csv").read_bytes().splitlines(keepends=True)
    (directory / "rounds.csv").write_bytes(b"".join(rows[:4]))
    assert set(load.load_curves(directory)["round"]) == {0, 1, 2}


def test_an_older_recording_has_none(tmp_path: Path) -> None:
    directory = recorded(tmp_path / "rec")
    (directory / "curves.csv").unlink()
    assert load.load_curves(directory).empty


@pytest.mark.parametrize("most", [300, 700, 1000])
def test_the_end_of_a_long_file(tmp_path: Path, most: int) -> None:
    """Only whole rows are read from the end of a file, whatever their paths contain."""
    directory = recorded(tmp_path / "rec")
    for loader in (load.load_curves, load.load_mappings):
        whole, part = loader(directory), loader(directory, most)
        assert 0 < len(part) < len(whole)
        rest = whole.tail(len(part)).reset_index(drop=True)
        assert (
            part.astype(object)
            .where(part.notna(), None)
            .equals(rest.astype(object).where(rest.notna(), None))
        )
    assert len(load.load_curves(directory, 1 << 30)) == len(load.load_curves(directory))
    assert isinstance(pages(1), PageSet)
