"""What all screens share: news from a reader, help, export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from redirty.collector.errors import RedirtyError
from redirty.tui import export
from redirty.tui.readers.base import Reader
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen


class Watch(Screen[None]):
    """A screen that shows snapshots. VIEW names its exports, HELP is told by `?`."""

    VIEW = "redirty"
    HELP = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", "help", id="help", key_display="?"),
        Binding("e", "export_csv", "CSV", show=False, id="export.csv"),
        Binding("E", "export_svg", "SVG", show=False, id="export.svg"),
    ]

    @dataclass
    class News(Message):
        """A reader has a new snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def waker(self) -> Callable[[], None]:
        """For a reader's thread. Several calls before the screen comes to look are one."""

        def wake() -> None:
            if not self._told and self.is_running:
                self._told = True
                self.post_message(self.News())

        return wake

    def keep(self, reader: Reader[Any]) -> None:
        """A reader that the program closes at its end, whatever that is."""
        kept = getattr(self.app, "readers", None)
        if kept is not None:
            kept.append(reader)

    def drop(self, reader: Reader[Any]) -> None:
        """One that was closed."""
        kept = getattr(self.app, "readers", [])
        if reader in kept:
            kept.remove(reader)

    def on_watch_news(self) -> None:
        """Shows the newest snapshot."""
        self._told = False
        self.newest()

    def newest(self) -> None:
        """Shows the reader's latest snapshot."""
        raise NotImplementedError

    def csv_rows(self) -> tuple[str, export.Rows]:
        """What is on the screen: a name, and rows with their heading."""
        raise NotImplementedError

    def action_help(self) -> None:
        """What the screen shows, and its keys."""
        from redirty.tui.screens.help import HelpScreen

        self.app.push_screen(HelpScreen(self.HELP, self))

    def action_export_csv(self) -> None:
        """Into a file in the working directory."""
        view, rows = self.csv_rows()
        self._save(lambda directory: export.save_csv(directory, view, rows))

    def action_export_svg(self) -> None:
        """A picture of the screen, likewise."""
        self.query("ToastRack").set(display=False)  # notices would lie on it
        self.call_after_refresh(self._save_svg)

    def _save_svg(self) -> None:
        picture = self.app.export_screenshot(title="redirty top").encode()
        self.query("ToastRack").set(display=True)
        view = self.csv_rows()[0]
        self._save(lambda directory: export.save(directory, view, "svg", picture))

    def _save(self, save: Callable[[Path], Path]) -> None:
        try:
            path = save(Path.cwd())
        except (RedirtyError, FileNotFoundError) as e:  # the working directory may be gone
            text = str(e) if isinstance(e, RedirtyError) else "the working directory is gone"
            self.notify(text, title="not exported", severity="error")
        else:
            self.notify(str(path), title="exported")
