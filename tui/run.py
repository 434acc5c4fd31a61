"""From the command line to the screens."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.tui import terminal

if TYPE_CHECKING:
    from redirty.tui.choices import Choices
    from redirty.tui.reading.link import LinkWatch
    from textual.screen import Screen


def run(options: argparse.Namespace) -> int:
    """Shows what the command line asks for; the exit code. Errors: RedirtyError."""
    if options.serve is not None:
        from redirty.tui.serve import serve

        return serve(options.serve)
    terminal.require_terminal()
    terminal.guard()  # before threads and large imports
    with terminal.screen_only():
        from redirty.tui import config
        from redirty.tui.app import TopApp, exit_code
        from redirty.tui.choices import checked

        look = config.read(None if options.config is None else Path(options.config))
        choices = checked(options)
        app = TopApp(_first_screen(choices), look)
        try:
            app.run()
        finally:
            for reader in app.readers:
                reader.close()
    if app.error is not None:
        raise app.error
    return exit_code(app)


def _first_screen(choices: Choices) -> Callable[[], Screen[None]]:
    if choices.replay is not None:
        from redirty.tui.reading.replay import Replay
        from redirty.tui.screens.replay import ReplayScreen

        directory = choices.replay
        return lambda: ReplayScreen(Replay(directory, choices.asked), link=_link(choices))
    from redirty.tui.reading.live import Live
    from redirty.tui.screens.live import LiveScreen

    target = choices.target
    if target is None:
        from redirty.tui.screens.overview import OverviewScreen

        return lambda: OverviewScreen(choices.wanted, choices.asked, _link(choices))
    return lambda: LiveScreen(
        lambda wanted: Live(lambda: target, wanted, choices.asked), choices.wanted,
        link=_link(choices),
    )  # fmt: skip


def _link(choices: Choices) -> LinkWatch | None:
    from redirty.tui.reading.link import LinkWatch

    measure = choices.measure
    if measure is None:
        return None

    def now() -> tuple[float, str]:
        found = measure()
        return found.bytes_per_s, found.said

    return LinkWatch(now)
