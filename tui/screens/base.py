"""Base of all screens: snapshots from a reader, help, export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.tui import export
from redirty.tui.readers.base import Reader
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen


class Watch(Screen[None]):
    """A screen that shows a reader's snapshots.

    Attributes:
        VIEW: names its exports.
        HELP: what `?` shows above the keys.
    """

    VIEW = "redirty"
    HELP = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", "help", id="help", key_display="?"),
        Binding("e", "export_csv", "export as CSV", show=False, id="export.csv"),
        Binding("E", "export_svg", "export the screen as SVG", show=False, id="export.svg"),
    ]

    @dataclass
    class NewSnapshot(Message):
        """A reader has published a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self._wake_pending = False

    def waker(self) -> Callable[[], None]:
        """Return a callback for a reader's thread. Wake-ups are coalesced until the screen refreshes."""

        def wake() -> None:
            if not self._wake_pending and self.is_running:
                self._wake_pending = True
                self.post_message(self.NewSnapshot())

        return wake

    def register(self, reader: Reader[Any]) -> None:
        """Register a reader that the program closes at its end, however it ends."""
        readers = getattr(self.app, "readers", None)
        if readers is not None:
            readers.append(reader)

    def forget(self, reader: Reader[Any]) -> None:
        """Forget a registered reader that was closed."""
        readers = getattr(self.app, "readers", [])
        if reader in readers:
            readers.remove(reader)

    def on_watch_new_snapshot(self) -> None:
        """Show the latest snapshot."""
        self._wake_pending = False
        self.show_latest()

    def show_latest(self) -> None:
        """Show the reader's latest snapshot, if there is a new one."""
        raise NotImplementedError

    def csv_rows(self) -> tuple[str, export.Rows]:
        """Return the contents of the screen: a name, and rows that start with a heading."""
        raise NotImplementedError

    def action_help(self) -> None:
        """Show help on the screen and its keys."""
        from redirty.tui.screens.help import HelpScreen

        self.app.push_screen(HelpScreen(self.HELP, self))

    def action_export_csv(self) -> None:
        """Export what the screen shows into a file in the directory in which the program was started."""
        view, rows = self.csv_rows()
        self._save(lambda folder: export.save_csv(folder, view, rows))

    def action_export_svg(self) -> None:
        """Export a picture of the screen into a file in the directory in which the program was started."""
        self.query("ToastRack").set(display=False)  # notifications would cover it
        self.call_after_refresh(self._save_svg)

    def _save_svg(self) -> None:
        picture = self.app.export_screenshot(title="redirty top").encode()
        self.query("ToastRack").set(display=True)
        view = self.csv_rows()[0]
        self._save(lambda folder: export.save(folder, view, "svg", picture))

    def _save(self, save: Callable[[Folder | None], Path]) -> None:
        try:
            path = save(getattr(self.app, "exports", None))
        except RedirtyError as e:
            self.notify(str(e), title="export failed", severity="error")
        else:
            self.notify(str(path), title="exported")
