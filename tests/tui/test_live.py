"""The target screen on rounds that keep coming: pause, threads and stacks anew, ends and errors, many
mappings. Rounds are made up here; tests/integration/top/test_top.py has real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.collector.target.targets import TargetSet
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.screens.live import LiveScreen
from redirty.tui.snapshots.cost import cost_of
from redirty.tui.snapshots.page_tables import PageTables
from redirty.tui.snapshots.snapshot import ReaderState, TargetInfo

from tests.support.pilot import LARGE, press, run, shown, text, until
from tests.support.screen_factories import ASKED, facts


def nobody() -> TargetSet:
    raise AssertionError("nothing is traced here")


class MadeUp(Live):
    """Some rounds at once, then one now and then until `end` is set."""

    def __init__(self, wanted: TopOptions, mappings: int) -> None:
        super().__init__(nobody, wanted, ASKED)
        self.about = TargetInfo("process 77: made up", "tracepoint", "uffd", wanted.interval_s)
        self.mappings = mappings
        self.end: Exception | None = None
        self.tables: PageTables | None = None

    def work(self) -> None:
        number = 0
        while not self.stopping:
            self._history.add(facts(number, self.mappings))
            number += 1
            cost = cost_of(self._history.lately, 1e-6, self.wanted.max_overhead)
            self.publish(
                replace(
                    self.snapshot(self._history, ReaderState.LIVE, force=False),
                    cost=cost,
                    tables=self.tables,
                    writers=self._history.writers() if self.wanted.writers else None,
                )
            )
            if isinstance(self.end, TargetEndedError):
                self.publish(self.again(ReaderState.ENDED, str(self.end)))
                return
            if self.end is not None:
                raise self.end
            with self._wake:
                self._wake.wait(0.01 if number < 5 else 0.2)


def made(mappings: int = 20, wanted: TopOptions | None = None) -> tuple[LiveScreen, list[MadeUp]]:
    readers: list[MadeUp] = []

    def begin(how: TopOptions) -> Live:
        readers.append(MadeUp(how, mappings))
        return readers[-1]

    return LiveScreen(begin, wanted or TopOptions()), readers


def test_pause_holds_the_screen_and_lets_questions_through() -> None:
    screen, _ = made()

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await until(pilot, lambda: screen.shown and len(screen.shown.series) > 3, "rounds")
            await press(pilot, "space")
            assert screen.shown is not None
            held = len(screen.shown.series)
            assert "PAUSED" in text(pilot)
            await pilot.pause(0.5)
            assert len(screen.shown.series) == held
            await press(pilot, "right_square_bracket")
            wanted = ASKED.bandwidth * 1.25

            def asked() -> float:
                assert screen.shown is not None
                assert screen.shown.convergence is not None
                return screen.shown.convergence.asked.bandwidth

            await until(pilot, lambda: asked() == wanted, "the answer")
            assert len(screen.shown.series) == held
            await press(pilot, "space")
            await until(pilot, lambda: screen.shown and len(screen.shown.series) > held, "rounds")

    run(test())


def test_threads_and_stacks_are_traced_anew() -> None:
    screen, readers = made()

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "6")
            assert "not traced" in text(pilot)
            await press(pilot, "left_square_bracket", "w")
            await until(pilot, lambda: len(readers) == 2, "another reader")
            assert readers[1].wanted.writers
            assert readers[1].asked == readers[0].asked
            assert not readers[0].alive
            await until(pilot, lambda: "none lately" in text(pilot), "its view")

    run(test())


def test_not_while_it_records() -> None:
    from pathlib import Path

    screen, readers = made(wanted=TopOptions(directory=Path("rec")))

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "w")
            await until(pilot, lambda: "not while recording" in text(pilot), "why not")
            assert len(readers) == 1

    run(test())


def test_cost_is_on_the_screen() -> None:
    screen, _ = made(2000)

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await until(pilot, lambda: "tracing costs" in text(pilot), "the cost")
            assert screen.shown is not None
            assert screen.shown.cost is not None
            assert screen.shown.cost.share == pytest.approx((2000 * 4e-6 + 0.001) / 0.5)

    run(test())


def test_page_tables_are_on_the_screen_where_they_are_known() -> None:
    screen, readers = made()

    async def test() -> None:
        async with shown(lambda: screen) as pilot:
            await until(pilot, lambda: "tracing costs" in text(pilot), "the cost")
            assert "page tables" not in text(pilot)
            readers[0].tables = PageTables(3149, {0: 97, 1: 3}, {1: 0.7})
            said = "page tables 12.3 MiB: node 0 97%, node 1 3%; ran on node 1"
            await until(pilot, lambda: said in text(pilot), "them")
            assert "tracing costs" in text(pilot)
            assert "dirty " in text(pilot)

    run(test())


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TargetEndedError("process 77 ended before the recording was to end"), ReaderState.ENDED),
        (RedirtyError("cannot arm process 77: it is being debugged"), ReaderState.FAILED),
        (ValueError("something of our own"), ReaderState.FAILED),
    ],
)
def test_an_end_stays_on_the_screen(error: Exception, state: ReaderState) -> None:
    screen, readers = made()

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await until(pilot, lambda: screen.shown and len(screen.shown.series) > 2, "rounds")
            readers[0].end = error
            await until(pilot, lambda: screen.shown and screen.shown.state is state, "the end")
            assert str(error) in text(pilot)
            assert "made up" in text(pilot)
            await press(pilot, "2", "3", "4", "5", "6", "1", "space", "space", "p")
            assert str(error) in text(pilot)
            await press(pilot, "q")

    run(test())


def test_sixty_thousand_mappings() -> None:
    screen, _ = made(60_000)

    async def test() -> None:
        async with shown(lambda: screen, LARGE) as pilot:
            await until(pilot, lambda: screen.shown is not None, "a round")
            await press(pilot, "2", "end")
            assert screen.shown is not None
            assert len(screen.shown.mappings) == 60_000
            await press(pilot, "s", "home")
            assert "/m/" in text(pilot) or "(anonymous)" in text(pilot)

    run(test())
