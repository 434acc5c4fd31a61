"""The target screen on rounds that keep coming: pause, restarted tracing, ends and errors, many mappings.

Rounds are made up here; tests/integration/top/test_top.py has real ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.collector.target.targets import TargetSet
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.screens.live import LiveScreen
from redirty.tui.snapshots.cost import cost_of
from redirty.tui.snapshots.page_tables import PageTables
from redirty.tui.snapshots.snapshot import ReaderState, TargetInfo

from tests.support.pilot import LARGE, press, run, run_app_until, shown, text
from tests.support.screen_factories import QUESTION, make_round


def no_target() -> TargetSet:
    raise AssertionError("nothing is traced here")


class MadeUpLive(Live):
    """A reader of made-up rounds: some at once, then one every 0.2 s until `end` is set."""

    def __init__(self, options: TopOptions, mappings: int) -> None:
        super().__init__(no_target, options, QUESTION)
        self.about = TargetInfo("process 77: made up", "tracepoint", "uffd", options.interval_s)
        self.mappings = mappings
        self.end: Exception | None = None
        self.tables: PageTables | None = None

    def work(self) -> None:
        number = 0
        while not self.stopping:
            self._history.add(make_round(number, self.mappings))
            number += 1
            cost = cost_of(self._history.recent, 1e-6, self.options.max_overhead)
            self.publish(
                replace(
                    self.snapshot(self._history, ReaderState.LIVE, force=False),
                    cost=cost,
                    tables=self.tables,
                    writers=self._history.writers() if self.options.writers else None,
                )
            )
            if isinstance(self.end, TargetEndedError):
                self.publish(self.repeat(ReaderState.ENDED, str(self.end)))
                return
            if self.end is not None:
                raise self.end
            with self._wake:
                self._wake.wait(0.01 if number < 5 else 0.2)


def make_screen(
    mappings: int = 20, options: TopOptions | None = None
) -> tuple[LiveScreen, list[MadeUpLive]]:
    """Return a screen, and the list of the readers it makes."""
    readers: list[MadeUpLive] = []

    def make_reader(options: TopOptions) -> Live:
        readers.append(MadeUpLive(options, mappings))
        return readers[-1]

    return LiveScreen(make_reader, options or TopOptions()), readers


def test_pause_holds_the_screen_and_lets_questions_through() -> None:
    screen, _ = make_screen()

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await run_app_until(
                pilot, lambda: screen.shown and len(screen.shown.series) > 3, "rounds"
            )
            await press(pilot, "space")
            assert screen.shown is not None
            rounds = len(screen.shown.series)
            assert "PAUSED" in text(pilot)
            await pilot.pause(0.5)
            assert len(screen.shown.series) == rounds
            await press(pilot, "right_square_bracket")
            expected = QUESTION.bandwidth * 1.25

            def answered() -> float:
                assert screen.shown is not None
                assert screen.shown.convergence is not None
                return screen.shown.convergence.question.bandwidth

            await run_app_until(pilot, lambda: answered() == expected, "the answer")
            assert len(screen.shown.series) == rounds
            await press(pilot, "space")
            await run_app_until(
                pilot, lambda: screen.shown and len(screen.shown.series) > rounds, "rounds"
            )

    run(test())


def test_tracing_restarts_with_threads_and_stacks() -> None:
    screen, readers = make_screen()

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await run_app_until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "6")
            assert "not traced" in text(pilot)
            await press(pilot, "left_square_bracket", "w")
            await run_app_until(pilot, lambda: len(readers) == 2, "another reader")
            assert readers[1].options.writers
            assert readers[1].question == readers[0].question
            assert not readers[0].alive
            await run_app_until(pilot, lambda: "none recently" in text(pilot), "its view")

    run(test())


def test_tracing_does_not_restart_while_recording() -> None:
    screen, readers = make_screen(options=TopOptions(directory=Path("rec")))

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await run_app_until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "w")
            await run_app_until(
                pilot, lambda: "not possible while recording" in text(pilot), "the reason"
            )
            assert len(readers) == 1

    run(test())


def test_cost_is_on_the_screen() -> None:
    screen, _ = make_screen(2000)

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await run_app_until(pilot, lambda: "tracing costs" in text(pilot), "the cost")
            assert screen.shown is not None
            assert screen.shown.cost is not None
            assert screen.shown.cost.share == pytest.approx(2000 * 4e-6 + 0.001)

    run(test())


def test_page_tables_are_on_the_screen_once_they_are_known() -> None:
    screen, readers = make_screen()

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await run_app_until(pilot, lambda: "tracing costs" in text(pilot), "the cost")
            assert "page tables" not in text(pilot)
            readers[0].tables = PageTables(3149, {0: 97, 1: 3}, {1: 0.7})
            line = "page tables 12.3 MiB: node 0 97%, node 1 3%; ran on node 1"
            await run_app_until(pilot, lambda: line in text(pilot), "page tables")
            assert "tracing costs" in text(pilot)
            assert "dirty " in text(pilot)

    run(test())


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TargetEndedError("process 77 ended before the recording was complete"), ReaderState.ENDED),
        (RedirtyError("cannot arm process 77: it is being debugged"), ReaderState.FAILED),
        (ValueError("a bug"), ReaderState.FAILED),
    ],
)
def test_an_end_stays_on_the_screen(error: Exception, state: ReaderState) -> None:
    screen, readers = make_screen()

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await run_app_until(
                pilot, lambda: screen.shown and len(screen.shown.series) > 2, "rounds"
            )
            readers[0].end = error
            await run_app_until(
                pilot, lambda: screen.shown and screen.shown.state is state, "the end"
            )
            assert str(error) in text(pilot)
            assert "made up" in text(pilot)
            await press(pilot, "2", "3", "4", "5", "6", "1", "space", "space", "p")
            assert str(error) in text(pilot)
            await press(pilot, "q")

    run(test())


def test_sixty_thousand_mappings() -> None:
    screen, _ = make_screen(60_000)

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await run_app_until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "2", "end")
            assert screen.shown is not None
            assert len(screen.shown.mappings) == 60_000
            await press(pilot, "s", "home")
            assert "/m/" in text(pilot) or "(anonymous)" in text(pilot)

    run(test())
