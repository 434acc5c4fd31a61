"""Re-dirtying statistics of known writers.

The test ends each round, and all figures must match what was written, page for page.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from redirty.collector.analyze import load, redirtying, summary
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.pageset import page_numbers
from redirty.collector.recording.writer import Meta, RecordingWriter

from tests.support.recorded_run import Recorded
from tests.support.stepped_rounds import LiveRounds, space_of
from tests.support.waiting import wait_idle
from tests.workloads.driver import Phases

pytestmark = pytest.mark.usefixtures("tracing")

AREAS = {"hot": ("anon_private", 4), "cycle": ("anon_shared", 4), "any": ("file_shared", 4)}
ROUNDS = 16


def assert_row(row: dict[str, Any], sets: list[set[int]], what: str) -> None:
    """Check a row of the summary against the pages of each round."""
    page_rounds = sum(map(len, sets))
    stayed = sum(len(a & b) for a, b in itertools.pairwise(sets))
    counts = np.array([sum(p in s for s in sets) for p in set().union(*sets)], np.int64)
    assert row["pages"] == len(counts), what
    assert row["dirty_next_round"] == redirtying.share(stayed, sum(map(len, sets[:-1]))), what
    assert row["mean_run_rounds"] == redirtying.run_length(page_rounds, stayed), what
    assert row["hot_pages"] == redirtying.hot_set(counts, redirtying.HOT), what


def test_known_writers(tracer: Tracer, tmp_path: Path) -> None:
    """A hot set, a cyclic writer and a random one, each in a mapping of its own, have the right statistics."""
    written: dict[str, list[set[int]]] = {name: [] for name in AREAS}
    every: list[set[int]] = []
    meta = Meta({"description": "x", "comm": "x"}, "x", "x", 1.0, "x", tracer.hooks)
    with Phases(AREAS) as phases, LiveRounds(phases.pid, tracer=tracer) as live:
        made = RecordingWriter(tmp_path / "rec", meta)
        live.begin()
        for number in range(ROUNDS):
            for name, pattern, seed, count in (
                ("hot", "range:0", 0, 64 + (number % 4 == 0) * 30),
                ("cycle", f"range:{number * 192 % 768}", 0, 256),
                ("any", "random", number + 1, 300),
            ):
                touched = phases.write(name, pattern, seed=seed, count=count)
                written[name].append(set(touched.pages.tolist()))
            wait_idle(phases.pid)
            result = live.end_round()
            every.append(set(page_numbers(space_of(result, phases.pid).dirty).tolist()))
            made.add(result)
        made.close(complete=True)
        starts = {name: phases.areas[name].start for name in AREAS}
    found = summary.summarise(tmp_path / "rec")
    rows = {int(row["start"], 16): row for row in found["mappings"]}
    for name, sets in written.items():
        row = rows[starts[name]]
        assert row["dirty_pages"] == sum(map(len, sets)), name
        assert_row(row, sets, name)
    # 16 x 64 page-rounds of pages that are always dirty, 4 x 30 of the others: 1030 make 90 %
    assert rows[starts["hot"]]["hot_pages"] == 64 + 2
    # a quarter of the pages is written again in the next round, except in the 3 of 15 that start over
    assert rows[starts["cycle"]]["dirty_next_round"] == 12 / 15 * 64 / 256
    assert_everything(tmp_path / "rec", found["again"], every)


def assert_everything(rec: Path, told: dict[str, Any], sets: list[set[int]]) -> None:
    """Check the whole process, and its windows, against its dirty sets at the ends of rounds."""
    pairs = [len(a & b) for a, b in itertools.pairwise(sets)]
    stayed = load.load_rounds(rec)["stayed_dirty_pages"]
    assert np.isnan(stayed[0])
    assert stayed[1:].tolist() == pairs
    assert told["dirty_next_round"] == redirtying.share(sum(pairs), sum(map(len, sets[:-1])))
    for size in told["working_set"]:
        length = size["rounds"]
        windows = [len(set().union(*sets[i : i + length])) for i in range(0, ROUNDS, length)]
        assert size["windows"] == len(windows)
        assert size["mean_pages"] == pytest.approx(np.mean(windows), abs=0.05)
        assert size["most_pages"] == max(windows)
    assert [size["rounds"] for size in told["working_set"]] == [1, 2, 4, 8, 16]


def test_threads(tmp_path: Path) -> None:
    """The statistics of two threads with pages of their own match their events."""
    with Phases({"a": ("anon_private", 4)}, threads=2) as phases:
        with Recorded(tmp_path, "-p", phases.pid, "--events", "--stacks") as recorded:
            parts: dict[int, set[int]] = defaultdict(set)
            for count in (200, 200, 100, 200):
                touched = phases.write("a", "range:0", count=count, threads=2)
                for tid, pages in touched.threads.items():
                    parts[tid] |= set(pages.tolist())
                recorded.pass_rounds(1)
            recorded.pass_rounds(2)
        area = phases.areas["a"]
        found = summary.summarise(recorded.directory)
    events = load.load_events(recorded.directory)
    rounds = load.load_rounds(recorded.directory)
    inside = (events["address"] >= area.start) & (events["address"] < area.end)
    for tid, own_pages in parts.items():
        seen = set(pages_of(events[inside & (events["tid"] == tid)]))
        assert seen == own_pages, "its own pages, and no other's"
    assert {row["tid"] for row in found["threads"]} >= set(parts)
    for row in found["threads"]:
        assert_row(row, by_round(events[events["tid"] == row["tid"]], rounds), row["tid"])
    assert found["stacks"]
    for row in found["stacks"]:
        own = events[events["stack_id"] == row["stack_id"]]
        assert_row(row, by_round(own, rounds), row["stack"])
        assert row["stack"].startswith("phases;"), "each by its name"


def pages_of(events: pd.DataFrame) -> list[int]:
    """Return the page of each event."""
    return [int(address) >> 12 for address in events["address"].tolist()]


def by_round(events: pd.DataFrame, rounds: pd.DataFrame) -> list[set[int]]:
    """Return the pages of some events by round."""
    found = []
    for start, length in zip(rounds["start_s"], rounds["duration_s"], strict=True):
        part = events[(events["time_s"] >= start) & (events["time_s"] < start + length)]
        found.append(set(pages_of(part)))
    return found
