"""Every key of the mirror screen, and of the question before it. The lines are those of a real mirror of
redis, told again by a process that does nothing else; tests/integration/top/test_top_mirror.py has real ones."""

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

from tests.support.pilot import LARGE, SMALL, press, run, shown, text, until, working_in
from tests.support.screen_factories import MIRROR_LINES
from tests.tui.test_live import MadeUp

# tells the lines, slowly; ends as it is told to
_TELLER = """
import signal, sys, time
def cancelled(*_):
    print("redirty: interrupted", file=sys.stderr, flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, cancelled)
path, lines, code, said = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for line in open(path).read().splitlines()[:lines]:
    print(line, flush=True)
if said == "wait":
    time.sleep(60)
print(said, file=sys.stderr)
sys.exit(code)
"""


def teller(lines: int = 1 << 20, code: int = 0, said: str = "") -> list[str]:
    return [sys.executable, "-c", _TELLER, str(MIRROR_LINES), str(lines), str(code), said]


class OfAProcess(MadeUp):
    """Of one that is there."""

    @property
    def target(self) -> TargetSet:
        return Pids([os.getppid()])


def made(wanted: TopOptions | None = None) -> tuple[LiveScreen, list[MadeUp]]:
    readers: list[MadeUp] = []

    def begin(how: TopOptions) -> Live:
        readers.append(OfAProcess(how, 20))
        return readers[-1]

    return LiveScreen(begin, wanted or TopOptions()), readers


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], list[MirrorCommand]]:
    """Has a process run instead of redirty mirror: the wishes that were to be done."""

    def tell(words: list[str]) -> list[MirrorCommand]:
        wishes: list[MirrorCommand] = []

        def command(wish: MirrorCommand) -> list[str]:
            wishes.append(wish)
            return words

        monkeypatch.setattr(MirrorCommand, "command", command)
        return wishes

    return tell


async def asked(pilot: Pilot[int], screen: LiveScreen, to: str) -> MirrorConfirmScreen:
    await until(pilot, lambda: screen.shown and len(screen.shown.series), "a round")
    await press(pilot, "m")
    await press(pilot, *to)
    await press(pilot, "enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, MirrorConfirmScreen), "the question")
    question = pilot.app.screen
    assert isinstance(question, MirrorConfirmScreen)
    return question


async def begun(pilot: Pilot[int], screen: LiveScreen, to: str) -> MirrorScreen:
    await asked(pilot, screen, to)
    return await agreed(pilot)


async def agreed(pilot: Pilot[int]) -> MirrorScreen:
    await press(pilot, "y")
    await until(pilot, lambda: isinstance(pilot.app.screen, MirrorScreen), "the mirror screen")
    mirror = pilot.app.screen
    assert isinstance(mirror, MirrorScreen)
    return mirror


def on_top(pilot: Pilot[int]) -> Screen[object]:
    return pilot.app.screen


def stage(screen: MirrorScreen) -> Stage:
    assert screen.reader.latest is not None
    return screen.reader.latest.progress.stage


async def until_stage(pilot: Pilot[int], screen: MirrorScreen, wanted: Stage) -> None:
    await until(
        pilot,
        lambda: screen.shown is not None and screen.shown.progress.stage is wanted,
        wanted.value,
    )


def test_from_the_question_to_the_end_and_back(
    tmp_path: Path, telling: Callable[[list[str]], list[MirrorCommand]]
) -> None:
    screen, readers = made()
    wishes = telling(teller())

    async def test() -> None:
        with working_in(tmp_path):
            async with shown(lambda: screen, LARGE) as pilot:
                question = await asked(pilot, screen, "here")
                said = " ".join(text(pilot).split())
                assert f"{tmp_path}/here" in question.wish.to
                assert "left alone" in said
                await press(pilot, "d", *"50ms", "enter")
                await press(pilot, "b", *"1Gbit", "enter")
                await press(pilot, "v")
                assert "1.0 Gbit/s" in text(pilot)
                assert "50.0 ms" in text(pilot)
                await press(pilot, "b", "enter", "b", *"2Gbit", "enter")
                await press(pilot, "enter", "enter")  # says nothing
                assert on_top(pilot) is question
                assert not wishes
                mirror = await agreed(pilot)
                assert not readers[0].alive  # its write protection is gone
                await until_stage(pilot, mirror, Stage.DONE)
                said = text(pilot)
                assert "mirrored to" in said
                assert "stop it now" in said
                assert "within" in said
                await press(pilot, "question_mark")
                assert "kept" in text(pilot)
                await press(pilot, "escape", "e", "E", "x")
                await press(pilot, "escape")
                await until(pilot, lambda: len(readers) == 2, "another reader")
                assert on_top(pilot) is screen
                await until(pilot, lambda: screen.shown and len(screen.shown.series), "rounds")
                assert readers[1].asked == readers[0].asked

    run(test())
    (wish,) = wishes
    assert (wish.downtime_s, wish.bandwidth, wish.verify) == (0.05, 250e6, True)
    assert wish.words == ("-p", str(os.getppid()))
    (path,) = tmp_path.glob("redirty-mirror-*.csv")
    assert len(pd.read_csv(path)) > 1
    assert list(tmp_path.glob("redirty-mirror-*.svg"))


def test_nothing_happens_without_a_yes(telling: Callable[[list[str]], list[MirrorCommand]]) -> None:
    screen, readers = made()
    wishes = telling(teller())

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await asked(pilot, screen, "/tmp/none-of-these")
            await press(pilot, "escape")
            assert on_top(pilot) is screen
            await press(pilot, "m", *"nowhere/new", "enter")
            assert "there is no directory" in " ".join(text(pilot).split())
            await press(pilot, "escape")
            assert on_top(pilot) is screen

    run(test())
    assert not wishes
    assert len(readers) == 1


@pytest.mark.parametrize("key", ["x", "escape", "q"])
def test_cancelled(key: str, telling: Callable[[list[str]], list[MirrorCommand]]) -> None:
    screen, _ = made()
    telling(teller(2, said="wait"))

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            mirror = await begun(pilot, screen, "/tmp/none-of-these")
            await until_stage(pilot, mirror, Stage.COPYING)
            await press(pilot, key)
            if key != "x":
                assert "not finished" in text(pilot)
                await press(pilot, "n")
                assert stage(mirror) is Stage.COPYING
                await press(pilot, key, "y")
            if key == "q":
                await until(pilot, lambda: not pilot.app.is_running, "the end")
                return
            await until_stage(pilot, mirror, Stage.CANCELLED)
            assert "there is no mirror" in " ".join(text(pilot).split())
            await press(pilot, "escape")
            assert on_top(pilot) is screen

    run(test())


def test_an_error_in_words(telling: Callable[[list[str]], list[MirrorCommand]]) -> None:
    screen, _ = made()
    telling(teller(4, 1, "noise\nredirty: it will not converge: so it is; 3 would do"))

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            mirror = await begun(pilot, screen, "/tmp/none-of-these")
            await until_stage(pilot, mirror, Stage.FAILED)
            assert "it will not converge: so it is; 3 would do" in text(pilot)
            await press(pilot, "q")
            assert pilot.app.last is not None  # type: ignore[attr-defined]

    run(test())


def test_not_while_it_records(telling: Callable[[list[str]], list[MirrorCommand]]) -> None:
    screen, _ = made(TopOptions(directory=Path("rec")))

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "m")
            await until(pilot, lambda: "not while recording" in text(pilot), "why not")

    run(test())


def test_a_target_that_ended_is_not_taken_for_another(
    telling: Callable[[list[str]], list[MirrorCommand]],
) -> None:
    """Its number may be another process's by now."""
    wishes = telling(teller())
    wish = MirrorCommand("x", ("-p", "1"), ((1 << 22) + 1,), "/tmp/none-of-these", 0.3)
    mirror = Mirror(wish)
    mirror.start()
    mirror.close()
    assert mirror.latest is not None
    assert mirror.latest.progress.stage is Stage.FAILED
    assert not wishes


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_small_and_a_large_terminal(
    size: tuple[int, int], telling: Callable[[list[str]], list[MirrorCommand]]
) -> None:
    screen, _ = made()
    telling(teller())

    async def test() -> None:
        async with shown(lambda: screen, size) as pilot:
            await asked(pilot, screen, "/tmp/none-of-these")
            said = text(pilot)
            assert "y begins" in said
            assert "verify" in said  # the last line of it
            await press(pilot, "y")
            await until(pilot, lambda: "mirrored to" in text(pilot), "the end")

    run(test())
