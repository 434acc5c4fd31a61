"""The confirmation before a mirror: explains it, and lets its options be changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from redirty.collector.errors import UsageError
from redirty.collector.units import parse_rate
from redirty.tui.render.mirror import confirmation
from redirty.tui.screens.prompt import prompt
from redirty.tui.snapshots.convergence import parse_downtime
from redirty.tui.snapshots.mirror import MirrorCommand
from redirty.tui.widgets.picture import Picture
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen


class MirrorConfirmScreen(ModalScreen[MirrorCommand | None]):
    """Returns the command to run, or None.

    Enter does not confirm: it may have been pressed once too often in the prompt before.
    """

    CSS = """
    MirrorConfirmScreen { align: center middle; }
    MirrorConfirmScreen > Vertical { width: 78; max-width: 100%; height: auto; max-height: 100%;
        border: round $warning; background: $surface; padding: 0 1; }
    """
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "start", "start", id="mirror.yes"),
        Binding("escape,n", "leave", "cancel", id="mirror.no"),
        Binding("d", "downtime", "downtime", id="mirror.downtime"),
        Binding("b", "bandwidth", "bandwidth", id="mirror.bandwidth"),
        Binding("c", "code", "code file", id="mirror.code"),
        Binding("v", "verify", "verify", id="mirror.verify"),
    ]

    def __init__(self, command: MirrorCommand, verdict: str) -> None:
        super().__init__()
        self.command = command
        self._verdict = verdict

    def compose(self) -> ComposeResult:
        """See Screen."""
        with Vertical() as box:
            box.border_title = "mirror the target?"
            box.border_subtitle = "y: start, escape: cancel"
            yield Picture[MirrorCommand](
                lambda command, width, _: confirmation(command, self._verdict, width),
                id="confirmation",
            )

    def on_mount(self) -> None:
        """See Screen."""
        self._show()

    def on_resize(self) -> None:
        """Wrap the text for the new width."""
        self._show()

    def _show(self) -> None:
        picture = self.query_one(Picture)
        inner = min(78, self.app.size.width) - 4
        picture.styles.height = len(confirmation(self.command, self._verdict, inner))
        picture.show(self.command)

    def _prompt(self, title: str, field: str, parse: Callable[[str], object]) -> None:
        """Ask for another value of one of the command's fields."""

        def apply(value: object) -> None:
            self.command = replace(self.command, **{field: value})  # type: ignore[arg-type]
            self._show()

        prompt(self.app, title, parse, apply)

    def action_start(self) -> None:
        """Confirm."""
        self.dismiss(self.command)

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)

    def action_downtime(self) -> None:
        """Ask for another downtime."""
        self._prompt("downtime: 300ms, 2s", "downtime_s", parse_downtime)

    def action_bandwidth(self) -> None:
        """Ask for a rate limit."""
        self._prompt("rate limit: 1Gbit, 100MiB; empty: unlimited", "bandwidth", rate_limit)

    def action_code(self) -> None:
        """Ask for the file with the pairing code of redirty receive."""
        title = "file with the code of redirty receive; empty: none"
        self._prompt(title, "code_file", code_file)

    def action_verify(self) -> None:
        """Switch verification on or off."""
        self.command = replace(self.command, verify=not self.command.verify)
        self._show()


def destination(text: str) -> str:
    """Return a destination: HOST:PORT, or the absolute path of a new directory.

    Raises:
        UsageError: the directory exists, or its parent does not.
        RedirtyError: the address is invalid.
    """
    from redirty.collector.mirror.transport.listener import parse_address

    text = text.strip()
    if not text:
        raise UsageError("enter a new directory, or HOST:PORT")
    if parse_address(text) is not None:
        return text
    path = Path.cwd() / Path(text).expanduser()
    # os.path: pathlib raises EACCES, as for a link of another user in a shared directory
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already; enter a new directory")
    if not os.path.isdir(path.parent):  # noqa: PTH112
        raise UsageError(f"no such directory: {path.parent}")
    return str(path)


def rate_limit(text: str) -> float | None:
    """Parse a rate limit in bytes per second; return None for an empty text.

    Raises:
        UsageError: the text is not a rate.
    """
    return parse_rate(text, "bandwidth") if text.strip() else None


def code_file(text: str) -> str | None:
    """Return the absolute path of a file with the receiver's code; None for an empty text.

    Raises:
        UsageError: there is no such file.
    """
    if not text.strip():
        return None
    path = Path(text.strip()).expanduser()
    if not os.path.isfile(path):  # noqa: PTH113
        raise UsageError(f"no such file: {path}")
    return str(path.absolute())
