"""Runs screens without a terminal: sizes, keys, the text on the screen."""

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

from tests.support.screen_factories import REDIS
from tests.support.waiting import PATIENCE_S

SMALL, LARGE = (80, 24), (160, 48)
SLOW_LINK = ConvergenceQuestion(12e6, 0.1)  # bytes per second: less than the recorded redis dirties
_POLL_S = 0.03


def run(test: Awaitable[None]) -> None:
    """Run an async test, for a bounded time."""

    async def bounded() -> None:
        await asyncio.wait_for(test, PATIENCE_S)

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def shown(
    first: Callable[[], Screen[None]],
    size: tuple[int, int] = SMALL,
    appearance: Appearance | None = None,
) -> AsyncIterator[Pilot[int]]:
    """Run the application with a screen; close all its readers at the end."""
    app = TopApp(first, appearance or Appearance())
    try:
        async with app.run_test(size=size, notifications=True) as pilot:
            yield pilot
    finally:
        for reader in app.readers:
            reader.close()


@contextlib.asynccontextmanager
async def replaying(
    size: tuple[int, int] = SMALL, directory: Path = REDIS, appearance: Appearance | None = None
) -> AsyncIterator[tuple[Pilot[int], ReplayScreen]]:
    """Run the application on a recording, once it is read."""
    screen: list[ReplayScreen] = []

    def first() -> ReplayScreen:
        screen.append(ReplayScreen(Replay(directory, SLOW_LINK)))
        return screen[0]

    async with shown(first, size, appearance) as pilot:
        await run_app_until(pilot, lambda: screen and is_read(screen[0]), "the recording")
        yield pilot, screen[0]


def is_read(screen: ReplayScreen) -> bool:
    """Return True once the recording is read, or found to be unreadable."""
    s = screen.shown
    return s is not None and s.state is not ReaderState.STARTING


async def run_app_until(pilot: Pilot[int], condition: Callable[[], object], what: str) -> None:
    """Let the application run until a condition holds. what: names it in the error."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {PATIENCE_S:g} s\n{text(pilot)}"
        await pilot.pause(_POLL_S)
    await pilot.pause()


async def press(pilot: Pilot[int], *keys: str) -> None:
    """Press keys and let the application handle them."""
    await pilot.press(*keys)
    await pilot.pause()


def lines(pilot: Pilot[int]) -> list[str]:
    """Return the lines on the screen."""
    strips = pilot.app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip) for strip in strips]


def text(pilot: Pilot[int]) -> str:
    """Return the lines on the screen as one text."""
    return "\n".join(lines(pilot))


def unwrapped(pilot: Pilot[int]) -> str:
    """Return the words on the screen, separated by single spaces wherever lines end."""
    return " ".join(text(pilot).split())


def parts(svg: str) -> list[tuple[float, float, str, str]]:
    """Return the (x, y, style, text) that an exported picture draws.

    What belongs to the library that draws it (fonts, ids, a window's frame) is left out.
    """
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
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        found.append((x, y, style, (element.text or "").replace("\xa0", " ")))
    return sorted(found)


class ScriptedOverview(Reader[OverviewSnapshot]):
    """An overview reader whose snapshots a test publishes."""

    interval_s = 1.0
    suspended = False

    def work(self) -> None:
        """Wait until the reader is stopped."""
        while not self.stopping:
            with self._wake:
                self._wake.wait(1.0)

    def failed(self, error: Exception) -> None:
        """Raise the error: none is expected."""
        raise AssertionError(error)

    def suspend(self, suspended: bool) -> None:
        """See Overview."""
        self.suspended = suspended

    def set_interval(self, seconds: float) -> None:
        """See Overview."""
        self.interval_s = seconds


@contextlib.contextmanager
def working_in(directory: Path) -> Iterator[Path]:
    """Change to a directory, which exports go to."""
    with contextlib.chdir(directory):
        yield directory
