"""Readers and their history: live rounds and a recording of the same rounds give the same figures."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.model.fit import fit
from redirty.collector.model.predict import answer
from redirty.collector.model.prediction import Question
from redirty.collector.pageset import from_pages
from redirty.collector.tracking.schedule import Schedule
from redirty.tui.readers.recording import LoadedRecording, first_rounds
from redirty.tui.readers.replay import Replay
from redirty.tui.snapshots.convergence import ConvergenceQuestion, convergence
from redirty.tui.snapshots.cost import MAX_INTERVAL_S, Cost, cost_of, longer_interval
from redirty.tui.snapshots.history import KEPT, History
from redirty.tui.snapshots.round_summary import PID_SHIFT, fold, page_counts_of
from redirty.tui.snapshots.snapshot import ReaderState, TargetSnapshot

from tests.support.screen_factories import REDIS, make_round
from tests.support.waiting import wait_until


def is_read(replay: Replay) -> bool:
    """Return True once all of the recording is read."""
    return replay.latest is not None and replay.latest.state is ReaderState.REPLAY


def test_quickly_read_rates_equal_those_of_the_whole_recording(tmp_path: Path) -> None:
    """The quick reading of rounds.csv gives the same values as reading the whole recording."""
    first, rounds = first_rounds(REDIS), LoadedRecording(REDIS).rounds
    assert [r.number for r in first] == [r.number for r in rounds]
    for quick, full in zip(first, rounds, strict=True):
        np.testing.assert_array_equal(quick.values, full.values)
    text = (REDIS / "rounds.csv").read_text()
    assert first_rounds(tmp_path) == []
    for damaged in (text[:200], "", text.replace("dirty_pages", "pages", 1), text + "1,inf,1\n"):
        (tmp_path / "rounds.csv").write_text(damaged)
        assert first_rounds(tmp_path) == []
    (tmp_path / "rounds.csv").write_text(text[:-3] + "x")  # the last row was being written
    assert [r.number for r in first_rounds(tmp_path)] == [r.number for r in rounds[:-1]]


def test_history_is_bounded() -> None:
    history = History()
    for number in range(KEPT + 100):
        history.add(make_round(number, 3))
    assert len(history) == KEPT
    assert history.series()["round"].tolist() == list(range(100, KEPT + 100))


def test_mappings_are_means_over_the_latest_rounds_the_most_redirtied_first() -> None:
    recorded = LoadedRecording(REDIS)
    table = History(recorded.rounds).mappings()
    frame = pd.read_csv(REDIS / "mappings.csv")
    rounds = pd.read_csv(REDIS / "rounds.csv").tail(5)
    recent = frame[frame["round"].isin(rounds["round"])]
    expected = recent.groupby("start")[["dirty_pages", "redirtied_pages"]].sum()
    expected = expected[expected["dirty_pages"] > 0] / rounds["duration_s"].sum()
    assert len(table) == len(expected)
    for i in range(len(table)):
        assert table[i].start == table.start[i]
        row = expected.loc[f"{table[i].start:#x}"]
        assert table.dirty_per_s[i] == pytest.approx(row["dirty_pages"])
        assert table.redirtied_per_s[i] == pytest.approx(row["redirtied_pages"])
    assert (np.diff(table.redirtied_per_s) <= 0).all()


def test_the_heat_map_has_every_dirty_page_once() -> None:
    heat = History(LoadedRecording(REDIS).rounds).heat()
    assert heat is not None
    rounds = pd.read_csv(REDIS / "rounds.csv")
    lost = rounds["dirty_pages"] - heat.pages.sum(axis=0)
    assert lost.min() >= 0
    assert lost.sum() <= rounds["lost_events"].sum()  # it is computed from events
    addresses = [address for _, address in heat.first]
    assert addresses == sorted(addresses)


def test_the_prediction_is_that_of_redirty_predict() -> None:
    from redirty.collector.analyze.observations import observe

    question = ConvergenceQuestion(20e6, 0.2)
    history = History(LoadedRecording(REDIS).rounds)
    observed = history.observed()
    assert observed is not None
    found = convergence(observed, question, history.mappings())
    expected = answer(fit(observe(REDIS)), Question(20e6, 0.2))
    assert [p.bytes for p in found.passes] == pytest.approx(
        [p.bytes for p in expected.middle.passes], rel=1e-6
    )
    assert found.total_s == pytest.approx(expected.middle.total_s, rel=1e-6)


def test_a_replay_knows_the_zero_pages_that_were_counted(tmp_path: Path) -> None:
    from redirty.collector.analyze.observations import observe

    directory = tmp_path / "rec"
    shutil.copytree(REDIS, directory)
    mappings = pd.read_csv(directory / "mappings.csv")
    last = mappings[mappings["round"] == mappings["round"].max()]
    present = last["present_pages"]
    pieces = last[["pid", "start", "end", "mapping_class"]].assign(
        pages=present, present_pages=present, zero_pages=present // 2
    )
    pieces.to_csv(directory / "zeros.csv", index=False)
    question = ConvergenceQuestion(20e6, 0.2, "qemu")

    def replayed(recording: Path) -> TargetSnapshot:
        replay = Replay(recording, question)
        replay.start()
        wait_until(lambda: is_read(replay), "the recording")
        replay.close()
        assert replay.latest is not None
        return replay.latest

    found = replayed(directory).convergence
    expected = answer(
        fit(observed := observe(directory)), question.for_model(), observed.layout
    ).middle
    assert observed.layout is not None
    assert found is not None
    assert found.transferred_bytes == pytest.approx(expected.transferred_bytes, rel=1e-6)
    without = replayed(REDIS).convergence
    assert without is not None
    assert without.passes[0].bytes > found.passes[0].bytes


@given(st.lists(st.integers(0, 1 << 45), min_size=1, max_size=400))
def test_blocks_hold_all_pages(numbers: list[int]) -> None:
    pages = from_pages(np.unique(np.array(numbers, np.uint64)))
    found = page_counts_of([(7, pages)])
    assert found.pages.sum() == len(set(numbers))
    assert (np.diff(found.keys.astype(np.int64)) > 0).all()
    assert {int(k) >> PID_SHIFT for k in found.keys} == {7}


def test_many_blocks_are_made_coarser() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    found = fold(keys, np.ones(100_000, np.int64))
    assert len(found.keys) <= 1024
    assert found.pages.sum() == 100_000
    assert (found.keys % np.uint64(1 << found.shift) == 0).all()


def test_texts_of_verdicts() -> None:
    history = History(LoadedRecording(REDIS).rounds)
    observed = history.observed()
    assert observed is not None
    table = history.mappings()

    def verdict(bandwidth: float, downtime_s: float = 0.1) -> str:
        return convergence(observed, ConvergenceQuestion(bandwidth, downtime_s), table).verdict

    assert verdict(1.25e9).startswith("converges in ")
    assert "downtime" in verdict(1.25e9)
    assert " alone is re-dirtied at " in verdict(4e6)
    assert verdict(4e6).endswith("/s would suffice")
    assert verdict(12e6).startswith("will not converge: re-dirtied at ")


# ---- the overhead guard ----


@pytest.mark.parametrize(
    ("cpu_s", "of_s"),
    [(0.5, 1.0), (0.0, 1.0), (None, 1.0), (1.0, 1.0), (3.0, 3.0)],
)
def test_cost_is_a_share_of_a_core_or_of_what_the_target_uses(
    cpu_s: float | None, of_s: float
) -> None:
    a_round = make_round(0, 250_000, 4, cpu_s=cpu_s)
    cost = cost_of([a_round], 1e-6, 0.02)
    assert cost is not None
    assert cost.faults_s == pytest.approx(1.0)  # a million faults of a microsecond in a second
    assert cost.share * of_s == pytest.approx(cost.faults_s + cost.arm_s)
    assert cost.too_high and cost.own_s is None
    few = cost_of([replace(a_round, own_cpu_s=0.25)], 1e-9, 0.02)
    assert few is not None and not few.too_high
    assert few.own_s == pytest.approx(0.25)
    assert few.text().endswith("; redirty uses 25.0%")
    assert cost_of([], 1e-6, 0.02) is None


@given(st.floats(0.001, 1.0), st.floats(0.001, 0.5), st.floats(0.01, 60.0))
def test_the_interval_is_made_longer_in_steps(share: float, limit: float, interval: float) -> None:
    found = longer_interval(interval, Cost(share, 0.0, 0.0, None, limit))
    if share <= limit:
        assert found == interval
    elif interval < MAX_INTERVAL_S:
        assert interval < found <= min(2 * interval, MAX_INTERVAL_S)
    assert found <= max(MAX_INTERVAL_S, interval)


# ---- rounds on schedule ----


def test_boundaries_do_not_drift_and_missed_ones_are_skipped() -> None:
    schedule = Schedule(100.0, 1.0)
    assert schedule.due() == 101.0
    schedule.ended(101.2)
    assert schedule.due() == 102.0
    schedule.ended(105.7)
    assert schedule.due() == 106.0


@pytest.mark.parametrize("interval", [0.25, 4.0])
def test_another_interval_counts_from_the_last_boundary(interval: float) -> None:
    schedule = Schedule(100.0, 1.0)
    schedule.ended(101.01)
    schedule.interval_s = interval
    assert schedule.due() == 101.0 + interval
    schedule.ended(101.0 + interval + 0.01)
    assert schedule.due() == 101.0 + 2 * interval


def test_unknown_values_stay_unknown() -> None:
    series = History(LoadedRecording(REDIS).rounds).series()
    assert all(math.isnan(v) for v in series["cow_faults"])  # tracepoints cannot tell
