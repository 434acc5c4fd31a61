"""Starts the screens in this terminal."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.tui import terminal

if TYPE_CHECKING:
    from redirty.tui.options import TopChoices
    from redirty.tui.readers.link_watch import LinkWatch
    from textual.screen import Screen


def run(choose: Callable[[], TopChoices], config_file: Path | None) -> int:
    """Show the screens in this terminal until they are left; return the exit code.

    Args:
        choose: checks the command line and returns what to show; called once, may start a command.
        config_file: keys and theme; None: the default one, if it exists.

    Raises:
        RedirtyError: the terminal, the configuration or the target cannot be used.
    """
    terminal.require_terminal()
    terminal.guard()  # before threads and large imports
    with terminal.screen_only():
        sys.setswitchinterval(0.001)  # a key must not wait for the thread that records
        gc.disable()  # nothing imported from here on becomes garbage
        from redirty.tui import config
        from redirty.tui.app import TopApp
        from redirty.tui.snapshots.snapshot import ReaderState

        appearance = config.read(config_file)
        choices = choose()
        app = TopApp(_first_screen(choices), appearance)
        # Each refresh allocates thousands of small tuples, none of them in a cycle: collecting all
        # imported objects repeatedly would take longer than drawing.
        gc.freeze()
        gc.enable()
        gc.set_threshold(50_000, 20, 100)
        try:
            app.run()
        finally:
            for reader in app.readers:
                reader.close()
    if app.error is not None:
        raise app.error
    last = app.last
    if (
        last is not None and last.state is ReaderState.ENDED
    ):  # the screen that showed the message is gone
        raise TargetEndedError(last.message)
    if last is not None and last.state is ReaderState.FAILED:
        raise RedirtyError(last.message)
    return app.return_value or 0


def _first_screen(choices: TopChoices) -> Callable[[], Screen[None]]:
    if choices.replay is not None:
        from redirty.tui.readers.replay import Replay
        from redirty.tui.screens.replay import ReplayScreen

        directory = choices.replay
        return lambda: ReplayScreen(Replay(directory, choices.question), link=_link(choices))
    from redirty.tui.readers.live import Live
    from redirty.tui.screens.live import LiveScreen

    target = choices.target
    if target is None:
        from redirty.tui.screens.overview import OverviewScreen

        return lambda: OverviewScreen(choices.trace, choices.question, _link(choices))
    return lambda: LiveScreen(
        lambda options: Live(lambda: target, options, choices.question), choices.trace,
        link=_link(choices),
    )  # fmt: skip


def _link(choices: TopChoices) -> LinkWatch | None:
    from redirty.tui.readers.link_watch import LinkWatch

    return None if choices.measure is None else LinkWatch(choices.measure)
