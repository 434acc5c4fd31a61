"""Runs screens without a terminal: sizes, keys, what is on them as text."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from redirty.tui.app import Appearance, TopApp
from redirty.tui.readers.base import Reader
from redirty.tui.readers.replay import Replay
from redirty.tui.screens.replay import ReplayScreen
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ReaderState
from textual.pilot import Pilot
from textual.screen import Screen

from tests.support.paths import TESTS

REDIS = TESTS / "data" / "redis"
SMALL, LARGE = (80, 24), (160, 48)
ASKED = ConvergenceQuestion(12e6, 0.1)  # bytes per second: less than the recorded redis dirties
PATIENCE_S = 60.0
_POLL_S = 0.03


def run(test: Awaitable[None]) -> None:
    """Of an async test."""

    async def bounded() -> None:
        await asyncio.wait_for(test, PATIENCE_S * 4)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def shown(
    first: Callable[[], Screen[None]], size: tuple[int, int] = SMALL, look: Appearance | None = None
) -> AsyncIterator[Pilot[int]]:
    """A running program; all its readers are closed at the end."""
    app = TopApp(first, look or Appearance())
    try:
        async with app.run_test(size=size, notifications=True) as pilot:
            yield pilot
    finally:
        for reader in app.readers:
            reader.close()


@contextlib.asynccontextmanager
async def replaying(
    size: tuple[int, int] = SMALL, directory: Path = REDIS, look: Appearance | None = None
) -> AsyncIterator[tuple[Pilot[int], ReplayScreen]]:
    """A recording on the screen, read."""
    screen: list[ReplayScreen] = []

    def first() -> ReplayScreen:
        screen.append(ReplayScreen(Replay(directory, ASKED)))
        return screen[0]

    async with shown(first, size, look) as pilot:
        await until(pilot, lambda: screen and read(screen[0]), "the recording")
        yield pilot, screen[0]


def read(screen: ReplayScreen) -> bool:
    """Whether all of the recording is there, or it is known that it cannot be read."""
    s = screen.shown
    return s is not None and s.state is not ReaderState.STARTING


async def until(pilot: Pilot[int], condition: Callable[[], object], what: str) -> None:
    """Waits for something on the screen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {PATIENCE_S:g} s\n{text(pilot)}"
        await pilot.pause(_POLL_S)
    await pilot.pause()


async def press(pilot: Pilot[int], *keys: str) -> None:
    """Keys, and what they lead to."""
    await pilot.press(*keys)
    await pilot.pause()


def lines(pilot: Pilot[int]) -> list[str]:
    """What is on the screen on top, and around it."""
    strips = pilot.app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip) for strip in strips]


def text(pilot: Pilot[int]) -> str:
    """The same as one text."""
    return "\n".join(lines(pilot))


def parts(svg: str) -> list[tuple[float, float, str, str]]:
    """(x, y, style, text) of a picture: all that is drawn, without what belongs to the library that
    draws it (fonts, ids, a window's frame)."""
    tree = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    css = "".join(style.text or "" for style in tree.iter(f"{space}style"))
    styles = dict(re.findall(r"\.terminal-\d+-(r\d+) \{ ([^}]*) \}", css))
    found = []
    for element in tree.iter(f"{space}text"):
        names = [re.sub(r"^terminal-\d+-", "", name) for name in element.get("class", "").split()]
        if names == ["title"]:
            continue
        style = " ".join(styles.get(name, "") for name in names)
        place = float(element.get("x", 0)), float(element.get("y", 0))
        found.append((*place, style, (element.text or "").replace("\xa0", " ")))
    return sorted(found)


class Told(Reader[OverviewSnapshot]):
    """A reader that publishes what a test tells it to."""

    interval_s = 1.0
    suspended = False

    def work(self) -> None:
        """Nothing by itself."""
        while not self.stopping:
            with self._wake:
                self._wake.wait(1.0)

    def failed(self, error: Exception) -> None:
        """Never."""
        raise AssertionError(error)

    def suspend(self, suspended: bool) -> None:
        """See Overview."""
        self.suspended = suspended

    def set_interval(self, seconds: float) -> None:
        """See Overview."""
        self.interval_s = seconds


@contextlib.contextmanager
def working_in(directory: Path) -> Iterator[Path]:
    """Where exports go to."""
    with contextlib.chdir(directory):
        yield directory
