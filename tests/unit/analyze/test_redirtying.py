"""Tests of re-dirtying statistics: compared with plain Python, and with closed forms."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.analyze import load, mappings, redirtying, summary, writers
from redirty.collector.bpf.ringbuf import RECORD
from redirty.collector.pageset import empty
from redirty.collector.recording.events import EventFile
from redirty.collector.recording.writer import RecordingWriter

from tests.support.factories import meta, one_round
from tests.support.older_recording import drop_columns
from tests.unit.metrics.test_streaks import of, record, streaks_of


@given(st.lists(st.integers(0, 40), max_size=30), st.sampled_from([1, 50, 80, 90, 99, 100]))
def test_a_hot_set_is_the_smallest(counts: list[int], percent: int) -> None:
    found = redirtying.hot_set(np.array(counts, np.int64), percent)
    ordered = sorted(counts, reverse=True)
    assert sum(ordered[:found]) * 100 >= percent * sum(counts)
    assert found == 0 or sum(ordered[: found - 1]) * 100 < percent * sum(counts)


def test_a_hot_set_by_hand() -> None:
    counts = np.array([10, 1, 1, 1, 1, 6], np.int64)
    assert [redirtying.hot_set(counts, p) for p in (50, 51, 80, 90, 100)] == [1, 2, 2, 4, 6]
    assert redirtying.hot_set(np.empty(0, np.int64), 90) == 0
    assert redirtying.hot_set(np.zeros(5, np.int64), 90) == 0


def summed(rec: Path) -> dict[str, Any]:
    found: dict[str, Any] = summary.summarise(rec)
    return found


def test_a_cyclic_writer_has_the_closed_form(tmp_path: Path) -> None:
    """A writer of S pages, the next n each round, has max(0, 2n - S) of them dirty in the next round, too."""
    size, each, rounds = 32, 20, 17
    written = [{16 + (r * each + i) % size for i in range(each)} for r in range(rounds)]
    found = summed(record(tmp_path / "rec", written))["again"]
    assert found["dirty_next_round"] == pytest.approx((2 * each - size) / each)
    sizes = {w["rounds"]: w["mean_pages"] for w in found["working_set"]}
    assert sizes == {1: each, 2: size, 4: size, 8: size, 16: size}
    assert [w["windows"] for w in found["working_set"]] == [17, 8, 4, 2, 1]


def test_hot_and_cold(tmp_path: Path) -> None:
    """Four pages in each of ten rounds and a new one every round make 40 of 50 page-rounds hot."""
    written = [{16, 17, 18, 19, 20 + r} for r in range(10)]
    s = summed(record(tmp_path / "rec", written))
    found = s["again"]
    assert found["dirty_next_round"] == pytest.approx(36 / 45)
    assert found["mean_run_rounds"] == pytest.approx(50 / 14, abs=1e-3)
    assert {h["percent"]: h["pages"] for h in found["hot_set"]} == {50: 3, 80: 4, 90: 9, 99: 14}
    assert found["hot_set"][0]["pages_of_write_faults"] == 3
    assert found["run_lengths"] == [
        {"rounds_from": 1, "rounds_to": 1, "runs": 9, "runs_going_on": 1},
        {"rounds_from": 8, "rounds_to": 11, "runs": 0, "runs_going_on": 4},
    ]
    (row,) = s["mappings"]
    assert (row["dirty_next_round"], row["pages"], row["hot_pages"]) == (0.8, 14, 9)
    text = summary.as_text(s)
    assert (
        "dirty again: 80.0% of a round's dirty pages are dirty in the next one, too; a streak"
        in text
    )
    assert "hot pages, of all page-rounds: 50% in 12.0 KiB, 80% in 16.0 KiB, 90% in 36.0 Ki" in text
    assert "distinct pages dirty within: 1.0 s: 20.0 KiB, 2.0 s: 24.0 KiB, 4.0 s: 32.0 KiB" in text
    (line,) = (line for line in text.splitlines() if "0x10000" in line)
    assert line.split()[4:8] == ["80%", "3.6", "36.0", "KiB"]


@pytest.mark.parametrize("written", [[{16, 17}], [set()], [set(), set(), {16}]])
def test_unknown_statistics_are_none(tmp_path: Path, written: list[set[int]]) -> None:
    """Statistics are unknown of a single round, an idle target, or one that wrote in the last round only."""
    s = summed(record(tmp_path / "rec", written))
    assert s["again"]["dirty_next_round"] is None
    assert "dirty again" not in summary.as_text(s)
    assert s["threads"] is s["stacks"] is None


def test_an_older_recording_has_none_of_it(tmp_path: Path) -> None:
    rec = record(tmp_path / "rec", [{16, 17}, {16, 17}])
    for name in ("rounds", "mappings"):
        drop_columns(rec, name, "stayed_dirty_pages")
    drop_columns(rec, "pages", "runs")
    (rec / "runs.csv").unlink()
    (rec / "working_set.csv").unlink()
    s = summed(rec)
    assert s["again"]["dirty_next_round"] is s["again"]["mean_run_rounds"] is None
    assert s["again"]["run_lengths"] == []
    assert [w["rounds"] for w in s["again"]["working_set"]] == [1]
    assert [h["pages"] for h in s["again"]["hot_set"]] == [1, 2, 2, 2]
    assert s["mappings"][0]["dirty_next_round"] is None
    (line,) = (line for line in summary.as_text(s).splitlines() if "0x10000" in line)
    assert line.split()[4:6] == ["-", "-"]


def test_a_page_belongs_to_the_mapping_seen_last() -> None:
    pages = pd.DataFrame(
        {"pid": [1, 1, 1, 2], "address": np.array([0x1000, 0x2000, 0x9000, 0x1000], np.uint64)}
    )
    lists = pd.DataFrame(
        {
            "pid": [1, 2, 1],
            "start": np.array([0x1000, 0x1000, 0x2000], np.uint64),
            "end": np.array([0x4000, 0x2000, 0x3000], np.uint64),
            "seen": [4, 0, 7],
        }
    )
    assert mappings.owner(pages, lists).tolist() == [0, 2, -1, 1]
    lists["seen"] = [7, 0, 4]
    assert mappings.owner(pages, lists).tolist() == [0, 0, -1, 1]


# ---- by thread and stack ----

_WRITES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=60
)


@given(_WRITES, st.integers(7, 9))
def test_groups_are_those_of_dictionaries(writes: list[tuple[int, int, int]], last: int) -> None:
    sets: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for group, page, number in writes:
        sets[group][number].add(page)
    columns = [np.array(c) for c in zip(*writes, strict=True)]
    found = writers.statistics(
        columns[0].astype(np.int64), columns[1].astype(np.uint64), columns[2].astype(np.int64), last
    )
    assert len(found) == max(sets) + 1
    for group, row in enumerate(found):
        rounds = [sets[group][n] for n in range(last + 1)]
        page_rounds = sum(map(len, rounds))
        stayed = sum(len(a & b) for a, b in itertools.pairwise(rounds))
        followed = sum(map(len, rounds[:-1]))
        ended, going_on = streaks_of(rounds)
        counts = np.array([sum(p in r for r in rounds) for p in set().union(*rounds)], np.int64)
        assert row["page_rounds"] == page_rounds
        assert row["pages"] == len(counts)
        assert row["dirty_next_round"] == (round(stayed / followed, 4) if followed else None)
        runs = len(ended) + len(going_on)
        assert row["mean_run_rounds"] == (round(page_rounds / runs, 3) if runs else None)
        assert row["hot_pages"] == redirtying.hot_set(counts, redirtying.HOT)


def test_times_to_rounds() -> None:
    """Times in a gap between rounds, or after the last one, are in no round."""
    rounds = pd.DataFrame(
        {"round": [0, 1, 2], "start_s": [0.0, 1.0, 3.0], "duration_s": [1.0, 1.5, 1.0]}
    )
    times = np.array([-0.1, 0.0, 0.99, 1.0, 2.49, 2.7, 3.0, 4.5])
    assert writers.round_of(times, rounds).tolist() == [-1, 0, 0, 1, 1, -1, 2, -1]
    assert writers.round_of(times[:2], rounds[:0]).tolist() == [-1, -1]


def test_threads_and_stacks_of_a_recording(tmp_path: Path) -> None:
    """Threads and stacks are summed: 8 writes one page in all three rounds, 9 two pages in one round each."""
    rec = tmp_path / "rec"
    made = RecordingWriter(rec, meta())
    events = EventFile(made.folder, 1_000)
    for number in range(3):
        made.add(one_round(number, log=of({16}), missed=empty(), present=empty()))
    rows = [(0.1, 8, 16, 5), (1.1, 8, 16, 5), (1.2, 8, 16, 5), (2.5, 8, 16, 5)]
    rows += [(0.3, 9, 17, 6), (2.2, 9, 18, 6), (3.4, 9, 19, 6)]  # the last is in no round
    records = np.zeros(len(rows), RECORD)
    for record_, (time_s, tid, page, stack) in zip(records, rows, strict=True):
        record_["ns"] = 1_000 + round(time_s * 1e9)
        record_["space"], record_["tid"], record_["address"] = 4321, tid, page << 12
        record_["stack"] = stack
    events.add(records)
    events.close()
    made.close(complete=True)
    (rec / "stacks.csv").write_text('pid,stack_id,pages,stack\n4321,5,3,"x;main;hot"\n4321,6,2,x\n')
    s = summed(rec)
    first, second = s["threads"]
    assert first == {
        **{"pid": 4321, "tid": 8, "page_rounds": 3, "pages": 1},
        **{"dirty_next_round": 1.0, "mean_run_rounds": 3.0, "hot_pages": 1},
    }
    assert (second["tid"], second["page_rounds"], second["pages"]) == (9, 2, 2)
    assert (second["dirty_next_round"], second["mean_run_rounds"]) == (0.0, 1.0)
    assert [(row["stack_id"], row["stack"]) for row in s["stacks"]] == [(5, "x;main;hot"), (6, "x")]
    assert s["stacks"][0]["dirty_next_round"] == 1.0
    text = summary.as_text(s)
    assert "8 of 4321" in text
    assert "60%  x: hot < main" in text
    assert "40%  x: [stack unknown]" in text
    (rec / "events.parquet").unlink()
    s = summed(rec)
    assert s["threads"] is None
    assert [(row["page_rounds"], row["stack_id"]) for row in s["stacks"]] == [(3, 5), (2, 6)]
    assert "60%  x: hot < main" in summary.as_text(s)
    assert load.load_stacks(rec) is not None
