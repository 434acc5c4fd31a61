"""Pictures of each screen, compared with the stored ones, which include those in the documentation.

REDIRTY_WRITE_PICTURES=1 writes them again: look at them before you commit them.
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
from tests.support.pilot import (
    LARGE,
    SMALL,
    ScriptedOverview,
    parts,
    press,
    replaying,
    run,
    run_app_until,
    shown,
)
from tests.support.screen_factories import (
    OPTIONS,
    QUESTION,
    IdleMirror,
    make_overview,
    mirror_snapshot,
)

PICTURES = Path(__file__).with_name("pictures")
DOCS = ROOT / "docs" / "pictures"
COMMAND = MirrorCommand(
    "process 2556: redis-server", ("-p", "2556"), (), "/var/tmp/redis-mirror", 0.29, 25e6,
    verify=True, present_pages=6852,
)  # fmt: skip
WRITE = os.environ.get("REDIRTY_WRITE_PICTURES") == "1"


def compare(pilot: Pilot[int], path: Path) -> None:
    """Compare all that is drawn, where, and in which style, with a stored picture."""
    picture = pilot.app.export_screenshot(title="redirty top")
    if WRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(picture, encoding="utf-8")
    stored = parts(path.read_text(encoding="utf-8"))
    new = parts(picture)
    differences = [(a, b) for a, b in zip(stored, new, strict=False) if a != b]
    assert new == stored, f"{path.name} has changed: {differences[:3]}"


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_target_screen(size: tuple[int, int]) -> None:
    """The views of the target screen and its help equal the stored pictures."""

    async def test() -> None:
        async with replaying(size) as (pilot, _):
            for number, view in enumerate(VIEWS, 1):
                await press(pilot, str(number))
                await pilot.pause()
                compare(pilot, PICTURES / f"{view}-{size[0]}x{size[1]}.svg")
                if size == LARGE and view in ("summary", "convergence"):
                    compare(pilot, DOCS / f"top-{view}.svg")
            await press(pilot, "1", "question_mark")
            compare(pilot, PICTURES / f"help-{size[0]}x{size[1]}.svg")

    run(test())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_overview(size: tuple[int, int]) -> None:
    async def test() -> None:
        screen = OverviewScreen(OPTIONS, QUESTION)
        reader = ScriptedOverview()
        screen.reader = reader  # type: ignore[assignment]
        async with shown(lambda: screen, size) as pilot:
            reader.publish(make_overview(40))
            await run_app_until(pilot, lambda: screen.shown is not None, "a snapshot")
            compare(pilot, PICTURES / f"overview-{size[0]}x{size[1]}.svg")

    run(test())


def shows(screen: MirrorScreen, snapshot: MirrorSnapshot) -> bool:
    return screen.shown is snapshot


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_mirror(size: tuple[int, int]) -> None:
    """The confirmation, a running mirror and its outcome equal the stored pictures."""

    async def test() -> None:
        async with shown(lambda: MirrorScreen(IdleMirror(COMMAND)), size) as pilot:
            screen = pilot.app.screen
            assert isinstance(screen, MirrorScreen)
            for name, count, elapsed_s in (("running", 2, 1.2), ("done", None, 3.4)):
                snapshot = mirror_snapshot(COMMAND, count, elapsed_s)
                screen.reader.publish(snapshot)
                await run_app_until(pilot, partial(shows, screen, snapshot), name)
                compare(pilot, PICTURES / f"mirror-{name}-{size[0]}x{size[1]}.svg")
            if size == SMALL:
                compare(pilot, DOCS / "top-mirror.svg")
            screen.app.push_screen(MirrorConfirmScreen(COMMAND, "converges in 5 passes, 3.4 s"))
            await pilot.pause()
            await pilot.pause()
            compare(pilot, PICTURES / f"mirror-confirm-{size[0]}x{size[1]}.svg")

    run(test())
