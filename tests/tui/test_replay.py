"""Every key of the target screen, on a real recording of redis."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from redirty.tui.app import Appearance
from redirty.tui.screens.target_layout import PANELS, VIEWS, panels

from tests.support.pilot import (
    LARGE,
    SLOW_LINK,
    SMALL,
    press,
    replaying,
    run,
    run_app_until,
    text,
    unwrapped,
    working_in,
)
from tests.support.screen_factories import REDIS

ROUNDS = 32


@pytest.mark.parametrize("size", [SMALL, LARGE, (40, 12), (250, 80)])
def test_views_and_their_panels(size: tuple[int, int]) -> None:
    async def test() -> None:
        async with replaying(size) as (pilot, screen):
            wide = size in (LARGE, (250, 80))
            for number, view in enumerate(VIEWS, 1):
                await press(pilot, str(number))
                assert screen.view == view
                there = {name for name in PANELS if screen.query_one(f"#{name}").display}
                assert there == panels(view, wide)
                assert ("redis-server" if size[0] >= 80 else "process") in text(pilot)

    run(test())


def test_the_rates_on_the_screen_are_those_of_the_recording() -> None:
    rounds = pd.read_csv(REDIS / "rounds.csv")
    last = rounds.iloc[-1]
    dirty = last["dirty_pages"] / last["duration_s"] * 4096 / 2**20
    again = last["redirtied_pages"] / last["duration_s"] * 4096 / 2**20

    async def test() -> None:
        async with replaying() as (pilot, _):
            assert f"  dirty {dirty:.1f} MiB/s" in text(pilot)
            assert f"re-dirtied {again:.1f} MiB/s" in text(pilot)
            assert f"round {last['round']:.0f} " in text(pilot)

    run(test())


def test_seeking() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):

            def at() -> int:
                assert screen.shown is not None
                assert screen.shown.playback is not None
                return screen.shown.playback.position

            def is_at(position: int) -> bool:
                return at() == position

            assert at() == ROUNDS - 1
            keys = {
                "left": 30, "shift+left": 20, "right": 21, "left_parenthesis": 0,
                "shift+right": 10, "right_parenthesis": ROUNDS - 1,
            }  # fmt: skip
            for key, position in keys.items():
                await press(pilot, key)
                await run_app_until(pilot, partial(is_at, position), f"{key}: round {position}")
                assert f"round {position} " in text(pilot)

    run(test())


def test_playing_pausing_and_speed() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):

            def playback() -> tuple[bool, float, int]:
                assert screen.shown is not None
                assert screen.shown.playback is not None
                p = screen.shown.playback
                return p.playing, p.speed, p.position

            def has_speed(speed: float) -> bool:
                return playback()[1] == speed

            for key, speed in (("full_stop", 2.0), ("full_stop", 4.0), ("comma", 2.0)):
                await press(pilot, key)
                await run_app_until(pilot, partial(has_speed, speed), f"speed {speed}")
            assert "x2" in text(pilot)
            await press(pilot, "space")  # at the end: starts at the first round
            await run_app_until(
                pilot, lambda: playback()[0] and playback()[2] < 8, "the first rounds"
            )
            await run_app_until(pilot, lambda: playback()[2] > 2, "the next rounds")
            await press(pilot, "space")
            await run_app_until(pilot, lambda: not playback()[0], "paused")
            stopped = playback()[2]
            await pilot.pause(0.6)
            assert playback()[2] == stopped < ROUNDS - 1
            for _ in range(8):
                await press(pilot, "full_stop")
            await press(pilot, "space")
            await run_app_until(pilot, lambda: playback()[2] == ROUNDS - 1, "the end")
            await run_app_until(pilot, lambda: not playback()[0], "stopped at the end")

    run(test())


def test_bandwidth_downtime_and_policy_change_the_verdict() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):

            def answered() -> tuple[float, float, str]:
                assert screen.shown is not None
                assert screen.shown.convergence is not None
                q = screen.shown.convergence.question
                return q.bandwidth, q.downtime_s, q.policy

            assert "will not converge" in text(pilot)
            assert "would suffice" in text(pilot)
            await press(pilot, "right_square_bracket")
            await run_app_until(
                pilot, lambda: answered()[0] == SLOW_LINK.bandwidth * 1.25, "a faster link"
            )
            for _ in range(10):
                await press(pilot, "right_square_bracket")
            await run_app_until(pilot, lambda: "converges in" in text(pilot), "a sufficient link")
            await press(pilot, *["left_square_bracket"] * 14)
            await run_app_until(
                pilot, lambda: "will not converge" in text(pilot), "an insufficient link"
            )
            before = answered()[1]
            await press(pilot, "right_curly_bracket")
            await run_app_until(pilot, lambda: answered()[1] == before * 1.25, "a longer downtime")
            await press(pilot, "left_curly_bracket")
            await run_app_until(
                pilot, lambda: abs(answered()[1] - before) < 1e-9, "a shorter downtime"
            )
            await press(pilot, "p")
            await run_app_until(pilot, lambda: answered()[2] == "qemu", "the next policy")
            assert "policy qemu" in text(pilot)

    run(test())


def test_typed_bandwidth_and_downtime() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):
            await press(pilot, "b", *"10")
            await press(pilot, "enter")
            assert "has no unit" in text(pilot)
            await press(pilot, *"Gbit", "enter")
            await run_app_until(pilot, lambda: "10.0 Gbit/s" in text(pilot), "the entered link")
            assert "converges" in text(pilot)
            await press(pilot, "d", *"0s", "enter")
            assert "downtime must be positive, got 0s" in text(pilot)
            await press(pilot, "escape", "d", *"25ms", "enter")
            await run_app_until(
                pilot, lambda: "downtime 25.0 ms" in text(pilot), "the entered downtime"
            )
            await press(pilot, "b", "escape")
            assert screen.reader.question.bandwidth == 1.25e9

    run(test())


def test_help_explains_the_screen_and_its_keys() -> None:
    async def test() -> None:
        async with replaying((120, 110)) as (pilot, _):
            await press(pilot, "question_mark")
            shown_text = text(pilot)
            for words in ("re-dirtied", "faster link", "back one round", "twice", "W(t)"):
                assert words in shown_text, words
            await press(pilot, "escape")
            assert "W(t)        distinct" not in text(pilot)

    run(test())


def test_exports_hold_what_is_on_the_screen(tmp_path: Path) -> None:
    async def test() -> None:
        with working_in(tmp_path):
            async with replaying() as (pilot, screen):
                for view in VIEWS:
                    await press(pilot, str(list(VIEWS).index(view) + 1), "e")
                await press(pilot, "1", "E")
                assert screen.shown is not None
                await press(pilot, "2", "s", "e")

    run(test())
    files = {p.name.split("-")[1]: p for p in sorted(tmp_path.glob("redirty-*.csv"))}
    assert set(files) == set(VIEWS)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    frames = {name: pd.read_csv(path) for name, path in files.items()}
    rounds = pd.read_csv(REDIS / "rounds.csv")
    assert frames["summary"]["dirty_pages"].tolist() == rounds["dirty_pages"].tolist()
    lost = rounds["dirty_pages"].sum() - frames["heat"]["dirty_pages"].sum()
    assert 0 <= lost <= rounds["lost_events"].sum()
    assert frames["mappings"]["redirtied_pages_per_s"].is_monotonic_decreasing or (
        frames["mappings"]["dirty_pages_per_s"].is_monotonic_decreasing
    )
    assert frames["convergence"]["bandwidth_bytes_per_s"].iloc[0] == SLOW_LINK.bandwidth
    assert set(frames["faults"]["reason"]) <= set(pd.read_csv(REDIS / "tlb.csv")["reason"])
    assert frames["writers"]["pages_per_s"].iloc[0] > 0
    (picture,) = tmp_path.glob("*.svg")
    assert "redis-server" in picture.read_text().replace("&#160;", " ")


def test_export_into_a_deleted_directory_is_reported(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()

    async def test() -> None:
        with working_in(directory):
            async with replaying() as (pilot, _):
                directory.rmdir()
                await press(pilot, "e")
                assert "export failed" in text(pilot)

    run(test())


def test_mappings_sorted_by_each_column() -> None:
    async def test() -> None:
        async with replaying(LARGE) as (pilot, screen):
            from redirty.tui.widgets.table import FieldTable

            table = screen.query_one(FieldTable)
            assert screen.shown is not None
            data = screen.shown.mappings
            seen = set()
            for _ in range(len(table.fields)):
                field = next(f for f in table.fields if f.name == table.sorted_by)
                values = [field.value(data, i) for i in table.order]
                expected = sorted(values, reverse=not field.left)  # type: ignore[type-var]
                assert values == expected, field.name
                seen.add(field.name)
                await press(pilot, "s")
            assert seen == {f.name for f in table.fields}
            await press(pilot, "S", "r")
            assert table.order[0] != table.order[-1]
            await press(pilot, "end")
            assert table.chosen == table.order[-1]
            await press(pilot, "home", "down", "j", "up")
            assert table.chosen == table.order[1]
            await press(pilot, "pagedown", "pageup")
            assert table.chosen in table.order

    run(test())


def test_clicks_sort_and_move_the_cursor() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):
            from redirty.tui.widgets.table import FieldTable

            table = screen.query_one(FieldTable)
            await pilot.click("#mappings", offset=(18, 0))
            assert table.sorted_by == "dirty_pages_per_s"
            await pilot.click("#mappings", offset=(5, 3))
            assert table.chosen == table.order[2]

    run(test())


def test_resized_while_it_plays() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):
            await press(pilot, "space")
            for size in ((160, 48), (20, 5), (80, 24), (300, 90), (1, 1), (80, 24)):
                await pilot.resize_terminal(*size)
                await pilot.pause(0.15)
            assert "redis-server" in text(pilot)
            assert screen.size == SMALL

    run(test())


def test_own_keys_and_theme() -> None:
    appearance = Appearance("textual-light", {"policy": "x", "quit": "z"})

    async def test() -> None:
        async with replaying(appearance=appearance) as (pilot, screen):
            assert pilot.app.theme == "textual-light"
            await press(pilot, "p")
            assert screen.reader.question.policy == "redirty"
            await press(pilot, "x")
            assert screen.reader.question.policy == "qemu"
            await press(pilot, "z")
            assert not pilot.app.is_running or pilot.app._exit

    run(test())


def test_the_command_palette_has_the_screens_keys() -> None:
    async def test() -> None:
        async with replaying(LARGE) as (pilot, screen):
            titles = {c.title for c in pilot.app.get_system_commands(screen)}
            assert "next policy" in titles
            assert any("heat" in title for title in titles)
            await press(pilot, "ctrl+p")
            await pilot.pause(0.2)
            await press(pilot, *"policy")
            await pilot.pause(0.5)
            await press(pilot, "enter")
            await run_app_until(
                pilot, lambda: screen.reader.question.policy == "qemu", "the effect of the command"
            )

    run(test())


@pytest.mark.parametrize("key", ["q", "escape"])
def test_leaving(key: str) -> None:
    async def test() -> None:
        async with replaying() as (pilot, _):
            await press(pilot, key)
            assert pilot.app._exit

    run(test())


def test_without_events_the_heat_map_is_marked_as_estimated(tmp_path: Path) -> None:
    directory = tmp_path / "rec"
    shutil.copytree(REDIS, directory, ignore=shutil.ignore_patterns("events*", "stacks*"))
    dirty = pd.read_csv(REDIS / "rounds.csv")["dirty_pages"]

    async def test() -> None:
        async with replaying(LARGE, directory) as (pilot, screen):
            await press(pilot, "3")
            assert "estimated" in text(pilot)
            assert screen.shown is not None
            assert screen.shown.heat is not None
            found = screen.shown.heat.pages.sum(axis=0)
            assert abs(found - dirty).max() <= 0.1 * dirty.max()
            await press(pilot, "6")
            assert "no events" in text(pilot)

    run(test())


def test_a_damaged_recording_stays_on_the_screen_as_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "rec"
    shutil.copytree(REDIS, directory)
    (directory / "mappings.csv").write_text("nonsense\r\n1\r\n")

    async def test() -> None:
        async with replaying(directory=directory) as (pilot, screen):
            assert "is damaged" in unwrapped(pilot)
            assert screen.shown is not None
            assert screen.shown.state.value == "failed"
            await press(pilot, "2", "3", "space", "left", "question_mark", "escape", "b", "escape")
            assert "is damaged" in unwrapped(pilot)

    run(test())


def test_a_recording_that_was_cut_off(tmp_path: Path) -> None:
    directory = tmp_path / "rec"
    shutil.copytree(REDIS, directory)
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | {"complete": False}))
    with (directory / "rounds.csv").open(newline="") as file:
        rows = list(csv.reader(file))[:12]
    (directory / "rounds.csv").write_text("".join(",".join(row) + "\r\n" for row in rows) + "11,2.")

    async def test() -> None:
        async with replaying(directory=directory) as (pilot, screen):
            assert "ended early" in text(pilot)
            assert screen.shown is not None
            assert len(screen.shown.series) == 11

    run(test())
