"""Text from outside on the live screen: shown as it is, neither markup nor a command to the terminal."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from redirty.collector.folders import Folder
from redirty.tui import export
from redirty.tui.screens.confirm import ConfirmScreen
from redirty.tui.screens.prompt import prompt
from redirty.tui.widgets.picture import Picture
from textual.pilot import Pilot
from textual.widgets import Input

from tests.support.pilot import press, replaying, run, run_app_until, text, working_in

MARKUP = (
    "[/b]",
    "[red]x[/red]",
    "[@click=app.quit]x[/]",
    "[",
    "]",
    "[[/x]",
    "\\[b]",
    "[link=http://x]",
)
COMMANDS = ("\x1b]0;x\x07", "\x1b[31m", "\x9b31m", "\u202ex", "\r\n")


def assert_nothing_to_obey(shown: str) -> None:
    assert shown.replace("\n", "").isprintable(), shown


async def until(pilot: Pilot[int], words: str, times: int = 1) -> None:
    """Let the application run until some words are on the screen."""
    await run_app_until(pilot, lambda: text(pilot).count(words) >= times, words)


def test_typed_text_that_is_wrong_is_shown_as_it_is() -> None:
    async def test() -> None:
        async with replaying() as (pilot, _):
            await press(pilot, "b")
            for typed in MARKUP[:4]:
                entered = pilot.app.screen.query_one(Input)
                entered.value = ""
                entered.insert_text_at_cursor(typed)
                await press(pilot, "enter")
                await until(pilot, typed, 2)

    run(test())


def test_commands_cannot_be_pasted() -> None:
    async def test() -> None:
        async with replaying() as (pilot, _):
            await press(pilot, "b")
            entered = pilot.app.screen.query_one(Input)
            for pasted in COMMANDS:
                entered.insert_text_at_cursor(pasted)
                await pilot.pause()
                assert entered.value.isprintable()
                assert_nothing_to_obey(text(pilot))

    run(test())


def test_notifications_questions_and_titles() -> None:
    async def test() -> None:
        async with replaying() as (pilot, screen):
            for number, message in enumerate((*MARKUP[:3], f"a{''.join(COMMANDS)}b")):
                screen.notify(f"{number}see {message} here")
                await until(pilot, f"{number}see")
                assert message in MARKUP or message not in text(pilot)
                assert message not in MARKUP or message in text(pilot)
                assert_nothing_to_obey(text(pilot))
                pilot.app.clear_notifications()
                pilot.app.push_screen(ConfirmScreen(f"{number}really {message} so"))
                await until(pilot, f"{number}really")
                assert message not in MARKUP or message in text(pilot)
                assert_nothing_to_obey(text(pilot))
                await press(pilot, "escape")
                prompt(pilot.app, f"{number}title {message}", str, lambda value: None)
                await until(pilot, f"{number}title")
                assert_nothing_to_obey(text(pilot))
                await press(pilot, "escape")

    run(test())


def test_a_panel_shows_no_command() -> None:
    """Whatever a panel is made of: it is cleaned where all of them are drawn."""

    async def test() -> None:
        async with replaying() as (pilot, screen):
            panel = screen.query_one("#rates", Picture)
            rows = [[(f"name {hostile} end", "bad")] for hostile in COMMANDS]
            panel._make = lambda s, width, height: rows
            panel._drawn = None
            panel.refresh()
            await run_app_until(
                pilot, lambda: text(pilot).count(" end") >= len(COMMANDS), "the panel"
            )
            assert_nothing_to_obey(text(pilot))

    run(test())


def test_an_export_from_a_directory_that_is_markup(tmp_path: Path) -> None:
    directory = tmp_path / "[@click=app.quit]x[" / "b]"
    directory.mkdir(parents=True)

    async def test() -> None:
        with working_in(directory):  # exports go to where the screen was started
            async with replaying() as (pilot, _):
                await press(pilot, "e")
                await run_app_until(pilot, lambda: "exported" in text(pilot), "the notice")

    run(test())
    assert len(list(directory.iterdir())) == 1


@pytest.mark.parametrize("formula", ["=HYPERLINK(1,2)", "+1", "-1+2", "@x", "\t=1", "\r=1"])
def test_an_export_has_no_formula(formula: str, tmp_path: Path) -> None:
    path = export.save_csv(
        Folder.hold(tmp_path), "x", iter([("name", "n"), (formula, -3), ("-1.5", 2)])
    )
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    number = formula == "+1"
    assert rows == [["name", "n"], [formula if number else f"'{formula}", "-3"], ["-1.5", "2"]]
