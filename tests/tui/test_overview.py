"""Every key of the overview, on made-up processes; tests/integration/top/test_top.py has real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.readers.overview import by_cgroup, matching
from redirty.tui.screens import overview
from redirty.tui.screens.live import LiveScreen
from redirty.tui.screens.overview import OverviewScreen
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ReaderState
from redirty.tui.widgets.table import FieldTable
from textual.pilot import Pilot
from textual.widgets import Input

from tests.support.pilot import (
    LARGE,
    ScriptedOverview,
    press,
    run,
    run_app_until,
    shown,
    text,
    working_in,
)
from tests.support.screen_factories import OPTIONS, QUESTION, make_overview
from tests.tui.test_live import MadeUpLive


def make_screen(processes: int) -> tuple[OverviewScreen, ScriptedOverview]:
    screen = OverviewScreen(OPTIONS, QUESTION)
    reader = ScriptedOverview()
    reader.latest = make_overview(processes)
    screen.reader = reader  # type: ignore[assignment]
    return screen, reader


async def ready(pilot: Pilot[int], screen: OverviewScreen) -> None:
    screen.reader.on_snapshot()
    await run_app_until(pilot, lambda: screen.rows, "processes")


def test_enter_twice_in_the_filter_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second enter chooses the row, even if it comes before the filter has lost the focus."""
    screen, _ = make_screen(60)
    picked: list[int] = []

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await ready(pilot, screen)
            await press(pilot, "slash", *"1003")
            line = screen.query_one(Input)
            monkeypatch.setattr(
                FieldTable, "action_choose", lambda table: picked.append(table.chosen)
            )
            line.post_message(Input.Submitted(line, line.value))
            line.post_message(Input.Submitted(line, line.value))
            await pilot.pause()
            assert screen.focused is screen.query_one(FieldTable)
            assert [screen.rows[row].pid for row in picked] == [1003]

    run(test())


def test_enter_traces_the_process_under_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter opens a live screen on the target of the row under the cursor."""
    screen, _ = make_screen(60)
    traced: list[object] = []

    class Opened(LiveScreen):
        """A live screen that looks up its target, but traces nothing."""

        def __init__(self, make: Callable[[TopOptions], Live], *_: object, link: object) -> None:
            assert link is None
            traced.append(make(OPTIONS)._find())
            super().__init__(lambda options: MadeUpLive(options, 5), OPTIONS)

    monkeypatch.setattr(overview, "LiveScreen", Opened)
    monkeypatch.setattr(overview, "target_of", lambda row: row.pid)

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await ready(pilot, screen)
            await press(pilot, "down", "down", "enter")
            await run_app_until(
                pilot, lambda: isinstance(pilot.app.screen, Opened), "the live screen"
            )
            assert traced == [screen.rows[2].pid]

    run(test())


def test_sorting_filtering_grouping() -> None:
    screen, _ = make_screen(60)

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await ready(pilot, screen)
            assert "60 of 60 processes" in text(pilot)
            faults = [p.write_faults for p in screen.rows]
            assert faults == sorted(faults, reverse=True)
            await press(pilot, "slash", *"redis", "enter")
            assert {p.comm for p in screen.rows} == {"redis-server"}
            assert "10 of 60" in text(pilot)
            await press(pilot, "escape")
            assert len(screen.rows) == 60
            await press(pilot, "g")
            assert {p.kind for p in screen.rows} == {"cgroup"}
            assert sum(p.members for p in screen.rows) == 60
            await press(pilot, "g", "v")
            assert {p.kind for p in screen.rows} == {"vm"}
            await press(pilot, "v", "slash", *"1003", "enter")
            assert [p.pid for p in screen.rows] == [1003]
            await press(pilot, "escape", "s")
            table = screen.query_one(FieldTable)
            values = [table.fields[4].value(screen.rows, i) for i in table.order]
            assert table.sorted_by == table.fields[4].name
            assert values == sorted(values, reverse=True)  # type: ignore[type-var]

    run(test())


def test_pause_interval_help_and_export(tmp_path: Path) -> None:
    screen, reader = make_screen(20)

    async def test() -> None:
        with working_in(tmp_path):
            async with shown(lambda: screen, LARGE) as pilot:
                await ready(pilot, screen)
                await press(pilot, "plus", "plus", "minus")
                assert reader.interval_s == 2.0
                await press(pilot, "space")
                reader.publish(make_overview(30, 2))
                await pilot.pause()
                assert len(screen.rows) == 20
                assert "paused" in text(pilot)
                await press(pilot, "space")
                assert len(screen.rows) == 30
                await press(pilot, "e")
                await press(pilot, "question_mark")
                assert "Enter traces the process" in text(pilot)
                await press(pilot, "escape", "q")

    run(test())
    (path,) = tmp_path.glob("redirty-overview-*.csv")
    frame = pd.read_csv(path)
    assert len(frame) == 30
    assert frame["write_faults_per_s"].is_monotonic_decreasing
    assert frame["cow_share"].isna().all()  # unknown, and so not 0


def test_the_cursor_stays_on_its_process() -> None:
    screen, reader = make_screen(50)

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await ready(pilot, screen)
            table = screen.query_one(FieldTable)
            await press(pilot, *["down"] * 5)
            assert table.chosen is not None
            pid = screen.rows[table.chosen].pid
            for number in (2, 3, 4):
                reader.publish(make_overview(50, number))
                await pilot.pause()
                assert table.chosen is not None
                assert screen.rows[table.chosen].pid == pid

    run(test())


def test_five_thousand_processes() -> None:
    screen, reader = make_screen(5000)

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await ready(pilot, screen)
            assert "5000 of 5000" in text(pilot)
            await press(pilot, "end")
            table = screen.query_one(FieldTable)
            assert table.chosen == table.order[-1]
            await press(pilot, "g", "g", "s", "slash", *"java", "enter")
            assert len(screen.rows) == 833
            reader.publish(make_overview(4000, 2))
            await run_app_until(pilot, lambda: len(screen.rows) < 833, "fewer")

    run(test())


def test_an_error_stays_on_the_screen() -> None:
    screen, reader = make_screen(10)

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await ready(pilot, screen)
            old = reader.latest
            assert old is not None
            reader.publish(
                OverviewSnapshot(2, ReaderState.FAILED, "the kernel refuses BPF", old.processes)
            )
            await run_app_until(pilot, lambda: "the kernel refuses BPF" in text(pilot), "the error")
            assert len(screen.rows) == 10
            await press(pilot, "q")

    run(test())


def test_filter_takes_all_words_in_any_case() -> None:
    processes = make_overview(60).processes
    assert {p.comm for p in matching(processes, "REDIS system.slice")} == {"redis-server"}
    assert matching(processes, "redis nginx") == []
    assert len(matching(processes, "")) == 60


def test_a_cgroup_is_the_sum_of_its_processes() -> None:
    processes = make_overview(60).processes
    groups = by_cgroup(processes)
    assert sum(g.write_faults for g in groups) == sum(p.write_faults for p in processes)
    assert sum(g.rss_bytes for g in groups) == sum(p.rss_bytes for p in processes)
    assert all(g.cow is None for g in groups)
    for group in groups:
        members = [p for p in processes if p.cgroup == group.cgroup]
        assert group.members == len(members)
        assert sum(group.recent) == sum(sum(p.recent) for p in members)
