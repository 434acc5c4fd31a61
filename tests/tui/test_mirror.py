"""Every key of the mirror screen, and of the confirmation before it.

A process prints the recorded lines of a real mirror of redis; tests/integration/top/test_top_mirror.py runs
real mirrors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from redirty.collector.target.targets import Pids, TargetSet
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.readers.mirror_process import Mirror
from redirty.tui.screens.live import LiveScreen
from redirty.tui.screens.mirror import MirrorScreen
from redirty.tui.screens.mirror_confirm import MirrorConfirmScreen
from redirty.tui.snapshots.mirror import MirrorCommand
from redirty.tui.snapshots.mirror_progress import Stage
from textual.pilot import Pilot
from textual.screen import Screen

from tests.support.pilot import (
    LARGE,
    SMALL,
    press,
    run,
    run_app_until,
    shown,
    text,
    unwrapped,
    working_in,
)
from tests.support.screen_factories import MIRROR_LINES
from tests.tui.test_live import MadeUpLive

# prints lines, then ends with an exit code
_REPLAYER = """
import signal, sys, time
def cancelled(*_):
    print("redirty: interrupted", file=sys.stderr, flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, cancelled)
path, lines, code, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for line in open(path).read().splitlines()[:lines]:
    print(line, flush=True)
if last == "wait":
    time.sleep(60)
print(last, file=sys.stderr)
sys.exit(code)
"""


def replayer(lines: int = 1 << 20, code: int = 0, last_line: str = "") -> list[str]:
    return [sys.executable, "-c", _REPLAYER, str(MIRROR_LINES), str(lines), str(code), last_line]


class LiveProcess(MadeUpLive):
    """A reader of made-up rounds whose target is a running process."""

    @property
    def target(self) -> TargetSet:
        return Pids([os.getppid()])


def make_screen(options: TopOptions | None = None) -> tuple[LiveScreen, list[MadeUpLive]]:
    """Return a screen, and the list of the readers it makes."""
    readers: list[MadeUpLive] = []

    def make_reader(options: TopOptions) -> Live:
        readers.append(LiveProcess(options, 20))
        return readers[-1]

    return LiveScreen(make_reader, options or TopOptions()), readers


Substitute = Callable[[list[str]], list[MirrorCommand]]


@pytest.fixture
def substitute(monkeypatch: pytest.MonkeyPatch) -> Substitute:
    """Return a function that has another command run instead of redirty mirror.

    It returns the list of the mirror commands that were to be run.
    """

    def replace_command(argv: list[str]) -> list[MirrorCommand]:
        commands: list[MirrorCommand] = []

        def instead(command: MirrorCommand) -> list[str]:
            commands.append(command)
            return argv

        monkeypatch.setattr(MirrorCommand, "argv", instead)
        return commands

    return replace_command


async def ask_to_mirror(pilot: Pilot[int], screen: LiveScreen, to: str) -> MirrorConfirmScreen:
    await run_app_until(pilot, lambda: screen.shown and len(screen.shown.series), "a round")
    await press(pilot, "m")
    await press(pilot, *to)
    await press(pilot, "enter")
    await run_app_until(
        pilot, lambda: isinstance(pilot.app.screen, MirrorConfirmScreen), "the confirmation"
    )
    question = pilot.app.screen
    assert isinstance(question, MirrorConfirmScreen)
    return question


async def start_mirror(pilot: Pilot[int], screen: LiveScreen, to: str) -> MirrorScreen:
    await ask_to_mirror(pilot, screen, to)
    return await confirm(pilot)


async def confirm(pilot: Pilot[int]) -> MirrorScreen:
    await press(pilot, "y")
    await run_app_until(
        pilot, lambda: isinstance(pilot.app.screen, MirrorScreen), "the mirror screen"
    )
    mirror = pilot.app.screen
    assert isinstance(mirror, MirrorScreen)
    return mirror


def on_top(pilot: Pilot[int]) -> Screen[object]:
    return pilot.app.screen


def stage(screen: MirrorScreen) -> Stage:
    assert screen.reader.latest is not None
    return screen.reader.latest.progress.stage


async def run_until_stage(pilot: Pilot[int], screen: MirrorScreen, expected: Stage) -> None:
    await run_app_until(
        pilot,
        lambda: screen.shown is not None and screen.shown.progress.stage is expected,
        expected.value,
    )


def test_from_the_confirmation_to_the_end_and_back(tmp_path: Path, substitute: Substitute) -> None:
    screen, readers = make_screen()
    commands = substitute(replayer())

    async def test() -> None:
        with working_in(tmp_path):
            async with shown(lambda: screen, LARGE) as pilot:
                question = await ask_to_mirror(pilot, screen, "here")
                assert f"{tmp_path}/here" in question.command.to
                assert "the target is not stopped" in unwrapped(pilot).replace("│ │ ", "")
                await press(pilot, "d", *"50ms", "enter")
                await press(pilot, "b", *"1Gbit", "enter")
                await press(pilot, "v")
                assert question.command.bandwidth == 125_000_000
                assert "50.0 ms" in text(pilot)
                await press(pilot, "b", "enter", "b", *"2Gbit", "enter")
                await press(pilot, "enter", "enter")  # does not confirm
                assert on_top(pilot) is question
                assert not commands
                mirror = await confirm(pilot)
                assert not readers[0].alive  # its write protection is released
                await run_until_stage(pilot, mirror, Stage.DONE)
                shown_text = text(pilot)
                assert "mirrored to" in shown_text
                assert "stop and copy" in shown_text
                assert "within" in shown_text
                await press(pilot, "question_mark")
                assert "deferred    hot pages" in text(pilot)
                await press(pilot, "escape", "e", "E", "x")
                await press(pilot, "escape")
                await run_app_until(pilot, lambda: len(readers) == 2, "another reader")
                assert on_top(pilot) is screen
                await run_app_until(
                    pilot, lambda: screen.shown and len(screen.shown.series), "rounds"
                )
                assert readers[1].question == readers[0].question

    run(test())
    (command,) = commands
    assert (command.downtime_s, command.bandwidth, command.verify) == (0.05, 250e6, True)
    assert command.target == ("-p", str(os.getppid()))
    (path,) = tmp_path.glob("redirty-mirror-*.csv")
    assert len(pd.read_csv(path)) > 1
    assert list(tmp_path.glob("redirty-mirror-*.svg"))


def test_nothing_happens_without_a_yes(substitute: Substitute) -> None:
    screen, readers = make_screen()
    commands = substitute(replayer())

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await ask_to_mirror(pilot, screen, "/tmp/none-of-these")
            await press(pilot, "escape")
            assert on_top(pilot) is screen
            await press(pilot, "m", *"nowhere/new", "enter")
            assert "no such directory" in unwrapped(pilot)
            await press(pilot, "escape")
            assert on_top(pilot) is screen

    run(test())
    assert not commands
    assert len(readers) == 1


@pytest.mark.parametrize("key", ["x", "escape", "q"])
def test_cancelled(key: str, substitute: Substitute) -> None:
    screen, _ = make_screen()
    substitute(replayer(2, last_line="wait"))

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            mirror = await start_mirror(pilot, screen, "/tmp/none-of-these")
            await run_until_stage(pilot, mirror, Stage.COPYING)
            await press(pilot, key)
            if key != "x":
                assert "not complete" in text(pilot)
                await press(pilot, "n")
                assert stage(mirror) is Stage.COPYING
                await press(pilot, key, "y")
            if key == "q":
                await run_app_until(pilot, lambda: not pilot.app.is_running, "the end")
                return
            await run_until_stage(pilot, mirror, Stage.CANCELLED)
            assert "the mirror was discarded" in unwrapped(pilot)
            await press(pilot, "escape")
            assert on_top(pilot) is screen

    run(test())


def test_an_error_is_shown_in_words(substitute: Substitute) -> None:
    screen, _ = make_screen()
    substitute(replayer(4, 1, "noise\nredirty: it will not converge: a reason; 3 would suffice"))

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            mirror = await start_mirror(pilot, screen, "/tmp/none-of-these")
            await run_until_stage(pilot, mirror, Stage.FAILED)
            assert "it will not converge: a reason; 3 would suffice" in text(pilot)
            await press(pilot, "q")
            assert pilot.app.last is not None  # type: ignore[attr-defined]

    run(test())


def test_no_mirror_while_recording(substitute: Substitute) -> None:
    screen, _ = make_screen(TopOptions(directory=Path("rec")))

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await run_app_until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "m")
            await run_app_until(
                pilot, lambda: "not possible while recording" in text(pilot), "the reason"
            )

    run(test())


def test_a_target_that_ended_is_not_taken_for_another(substitute: Substitute) -> None:
    """A mirror whose target has ended is refused: its PID may name another process by now."""
    commands = substitute(replayer())
    command = MirrorCommand("x", ("-p", "1"), ((1 << 22) + 1,), "/tmp/none-of-these", 0.3)
    mirror = Mirror(command)
    mirror.start()
    mirror.close()
    assert mirror.latest is not None
    assert mirror.latest.progress.stage is Stage.FAILED
    assert not commands


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_small_and_a_large_terminal(size: tuple[int, int], substitute: Substitute) -> None:
    screen, _ = make_screen()
    substitute(replayer())

    async def test() -> None:
        async with shown(lambda: screen, size) as pilot:
            await ask_to_mirror(pilot, screen, "/tmp/none-of-these")
            shown_text = text(pilot)
            assert "y: start" in shown_text
            assert "verify" in shown_text  # the last line
            await press(pilot, "y")
            await run_app_until(pilot, lambda: "mirrored to" in text(pilot), "the end")

    run(test())
