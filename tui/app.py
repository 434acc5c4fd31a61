"""The application behind redirty top: screens, theme, keys, command palette."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from redirty.collector import text
from redirty.tui.export import hold_working_directory
from redirty.tui.readers.base import Reader
from redirty.tui.screens.base import Watch
from redirty.tui.snapshots.mirror import MirrorSnapshot
from redirty.tui.snapshots.snapshot import OverviewSnapshot, TargetSnapshot
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.notifications import SeverityLevel
from textual.screen import Screen


@dataclass(frozen=True)
class Appearance:
    """The user's theme and keys. theme: one of Textual's; keys: by binding id."""

    theme: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)


class TopApp(App[int]):
    """The application; its result is the exit code, None meaning 0.

    Attributes:
        error: an unexpected exception that ended it.
        readers: readers that must be closed before the program ends.
        exports: the directory that exports go into, held from the start; None: it is gone.
    """

    TITLE = "redirty top"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit", id="quit", priority=False),
    ]
    CSS = "Toast { max-width: 78; }"

    def __init__(self, first_screen: Callable[[], Screen[None]], appearance: Appearance) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.exports = hold_working_directory()
        self.readers: list[
            Reader[TargetSnapshot] | Reader[OverviewSnapshot] | Reader[MirrorSnapshot]
        ] = []
        self._first_screen = first_screen
        self._appearance = appearance

    def on_mount(self) -> None:
        """Show the first screen."""
        if self._appearance.theme:
            self.theme = self._appearance.theme
        if self._appearance.keys:
            self.set_keymap(dict(self._appearance.keys))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with contextlib.suppress(
                ValueError, RuntimeError
            ):  # not in the main thread, as in tests
                loop.add_signal_handler(number, self.exit, 130)
        self.push_screen(self._first_screen())

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Show a notification. Never markup: paths and messages from outside may hold anything."""
        super().notify(
            text.lines(message), title=title, severity=severity, timeout=timeout, markup=False
        )

    @property
    def last(self) -> TargetSnapshot | OverviewSnapshot | MirrorSnapshot | None:
        """The latest snapshot of the last reader."""
        return self.readers[-1].latest if self.readers else None

    def _fatal_error(self) -> None:
        """Keep the exception instead of printing Textual's traceback: launch.run() reports it."""
        self.error = self._exception
        self._close_messages_no_wait()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yield the commands of the palette: Textual's own and the screen's keys."""
        yield from super().get_system_commands(screen)
        if not isinstance(screen, Watch):
            return
        listed = set()
        for active in screen.active_bindings.values():
            b = active.binding
            if b.system or b.action in listed or not b.description:
                continue
            listed.add(b.action)

            async def run(action: str = b.action, node: object = active.node) -> None:
                await self.run_action(action, node)  # type: ignore[arg-type]

            title = b.tooltip or b.description
            yield SystemCommand(title, f"key {self.get_key_display(b)}", run)
