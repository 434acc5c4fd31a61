"""The program behind redirty top: screens, theme, keys, command palette."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from redirty.tui.readers.base import Reader
from redirty.tui.screens.base import Watch
from redirty.tui.snapshots.mirror import MirrorSnapshot
from redirty.tui.snapshots.snapshot import OverviewSnapshot, TargetSnapshot
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen


@dataclass(frozen=True)
class Appearance:
    """theme: a name that Textual knows. keys: by the id of a binding."""

    theme: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)


class TopApp(App[int]):
    """first: makes the first screen. Its exit code is what it returns; None is 0."""

    TITLE = "redirty top"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit", id="quit", priority=False),
    ]
    CSS = "Toast { max-width: 78; }"

    def __init__(self, first: Callable[[], Screen[None]], look: Appearance) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.readers: list[
            Reader[TargetSnapshot] | Reader[OverviewSnapshot] | Reader[MirrorSnapshot]
        ] = []  # that must have let go before the program ends
        self._first = first
        self._look = look

    def on_mount(self) -> None:
        """The first screen."""
        if self._look.theme:
            self.theme = self._look.theme
        if self._look.keys:
            self.set_keymap(dict(self._look.keys))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: a test
                loop.add_signal_handler(number, self.exit, 130)
        self.push_screen(self._first())

    @property
    def last(self) -> TargetSnapshot | OverviewSnapshot | MirrorSnapshot | None:
        """What was known at the end."""
        return self.readers[-1].latest if self.readers else None

    def _fatal_error(self) -> None:
        """Instead of Textual's traceback: the one who runs the program tells of the error."""
        self.error = self._exception
        self._close_messages_no_wait()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """What the palette has beside Textual's own: the screen's keys."""
        yield from super().get_system_commands(screen)
        if not isinstance(screen, Watch):
            return
        told = set()
        for active in screen.active_bindings.values():
            b = active.binding
            if b.system or b.action in told or not b.description:
                continue
            told.add(b.action)

            async def run(action: str = b.action, node: object = active.node) -> None:
                await self.run_action(action, node)  # type: ignore[arg-type]

            title = b.tooltip or b.description
            yield SystemCommand(title, f"key {self.get_key_display(b)}", run)
