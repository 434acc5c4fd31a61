"""Each screen as a picture, compared with the one that is kept; those in the README among them.

REDIRTY_WRITE_PICTURES=1 writes them anew: look at them before you commit them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from redirty.tui.screens.mirror import MirrorScreen
from redirty.tui.screens.mirror_confirm import MirrorConfirmScreen
from redirty.tui.screens.overview import OverviewScreen
from redirty.tui.screens.target_layout import VIEWS
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from textual.pilot import Pilot

from tests.support.paths import ROOT
from tests.support.pilot import LARGE, SMALL, Told, parts, press, replaying, run, shown, until
from tests.support.screen_factories import ASKED, WANTED, Silent, machine, mirror_of

KEPT = Path(__file__).with_name("pictures")
README = ROOT / "docs" / "pictures"
WISH = MirrorCommand(
    "process 2556: redis-server", ("-p", "2556"), (), "/var/tmp/redis-mirror", 0.29, 25e6,
    verify=True, present_pages=7040,
)  # fmt: skip
WRITE = os.environ.get("REDIRTY_WRITE_PICTURES") == "1"


def compare(pilot: Pilot[int], path: Path) -> None:
    """All that is drawn, where, and in which style."""
    picture = pilot.app.export_screenshot(title="redirty top")
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(picture, encoding="utf-8")
    kept = parts(path.read_text(encoding="utf-8"))
    new = parts(picture)
    differences = [(a, b) for a, b in zip(kept, new, strict=False) if a != b]
    assert new == kept, f"{path.name} has changed: {differences[:3]}"


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_target_screen(size: tuple[int, int]) -> None:
    """Its views, and its help."""

    async def test() -> None:
        async with replaying(size) as (pilot, _):
            for number, view in enumerate(VIEWS, 1):
                await press(pilot, str(number))
                await pilot.pause()
                compare(pilot, KEPT / f"{view}-{size[0]}x{size[1]}.svg")
                if size == LARGE and view in ("summary", "convergence"):
                    compare(pilot, README / f"top-{view}.svg")
            await press(pilot, "1", "question_mark")
            compare(pilot, KEPT / f"help-{size[0]}x{size[1]}.svg")

    run(test())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_overview(size: tuple[int, int]) -> None:
    async def test() -> None:
        screen = OverviewScreen(WANTED, ASKED)
        told = Told()
        screen.reader = told  # type: ignore[assignment]
        async with shown(lambda: screen, size) as pilot:
            told.publish(machine(40))
            await until(pilot, lambda: screen.shown is not None, "a snapshot")
            compare(pilot, KEPT / f"overview-{size[0]}x{size[1]}.svg")

    run(test())


def shows(screen: MirrorScreen, snapshot: MirrorSnapshot) -> bool:
    return screen.shown is snapshot


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_mirror(size: tuple[int, int]) -> None:
    """The question, a mirror on its way, and how it ended: by the lines of a real one of redis."""

    async def test() -> None:
        async with shown(lambda: MirrorScreen(Silent(WISH)), size) as pilot:
            screen = pilot.app.screen
            assert isinstance(screen, MirrorScreen)
            for name, count, took_s in (("going", 2, 2.4), ("done", None, 5.8)):
                snapshot = mirror_of(WISH, count, took_s)
                screen.reader.publish(snapshot)
                await until(pilot, partial(shows, screen, snapshot), name)
                compare(pilot, KEPT / f"mirror-{name}-{size[0]}x{size[1]}.svg")
            if size == SMALL:
                compare(pilot, README / "top-mirror.svg")
            screen.app.push_screen(MirrorConfirmScreen(WISH, "converges in 5 passes, 3.4 s"))
            await pilot.pause()
            await pilot.pause()
            compare(pilot, KEPT / f"mirror-question-{size[0]}x{size[1]}.svg")

    run(test())
