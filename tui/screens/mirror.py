"""The mirror screen: passes, decisions with their reasons, how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from redirty.tui import export
from redirty.tui.readers.mirror_process import Mirror
from redirty.tui.render import mirror as draw
from redirty.tui.render.rows import Row
from redirty.tui.screens.base import Watch
from redirty.tui.screens.confirm import ConfirmScreen
from redirty.tui.snapshots.mirror import MirrorSnapshot
from redirty.tui.widgets.picture import Picture
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

_HELP = """\
The target's memory is copied while it runs, then again and again what it wrote meanwhile; when what is left \
can be copied within the downtime asked for, it is stopped for that, and runs again. If that will not come, \
the target is left alone.

  pass        one trip over a set of pages: first all of them
  zero        pages of zeros, which need not be sent
  unchanged   pages whose contents are what was sent before: written, but not changed
  kept        pages that will surely be written again: sent in the last pass, while the target stands still
  dirty/s     what the target wrote while the pass went on

x cancels it: the target runs on, and there is no mirror. The mirror is a process of its own; when this screen \
ends, however it does, it is cancelled.
"""


class MirrorScreen(Watch):
    """Runs one; left when it is over, or cancelled."""

    VIEW = "mirror"
    HELP = _HELP
    SCOPED_CSS = False
    CSS = """
    MirrorScreen #heading { height: 2; }
    MirrorScreen #progress { height: 1; }
    MirrorScreen #passes, MirrorScreen #steps {
        border-top: solid $primary-muted; border-title-color: $text-accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel", "cancel", id="mirror.cancel", tooltip="end it with no mirror"),
        Binding(
            "escape", "leave", "back", id="leave", tooltip="back to the target, when it is over"
        ),
        Binding("q,ctrl+c", "leave_all", "quit", id="quit", key_display="q"),
    ]

    def __init__(self, reader: Mirror) -> None:
        super().__init__()
        self.reader = reader
        self.shown: MirrorSnapshot | None = None

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Picture[MirrorSnapshot](self._heading, id="heading")
        yield Picture(draw.progress, id="progress")
        yield Picture(draw.passes, id="passes", title="passes")
        yield Picture(draw.steps, id="steps", title="after each pass")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begins."""
        self.reader.told = self.waker()
        self.keep(self.reader)
        self.reader.start()
        self.newest()
        self.set_interval(0.5, self.newest)

    def on_unmount(self) -> None:
        """Lets go of the target."""
        self.reader.request_stop()

    def on_resize(self) -> None:
        """More or less fits now."""
        self._show()

    def _heading(self, s: MirrorSnapshot, width: int, height: int) -> list[Row]:
        return draw.heading(s, width)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        latest = self.reader.latest
        return latest is not None and latest.progress.stage.over

    def newest(self) -> None:
        """See Watch."""
        latest = self.reader.latest
        if latest is None or latest is self.shown:
            return
        self.shown = latest
        self._show()

    def _show(self) -> None:
        s = self.shown
        if s is None:
            return
        self.query_one("#heading").styles.height = len(draw.heading(s, self.size.width))
        for picture in self.query(Picture):
            picture.show(s)

    # ---- keys ----

    def action_cancel(self) -> None:
        """Ends it."""
        if not self.over:
            self.reader.cancel()

    def action_leave(self) -> None:
        """Back, when it is over."""
        if self.over:
            self.drop(self.reader)
            self.dismiss()
        else:
            self._ask_to_cancel(self.reader.cancel)

    def action_leave_all(self) -> None:
        """Out of the program, when it is over."""
        if self.over:
            self.app.exit()
        else:
            self._ask_to_cancel(self.app.exit)

    def _ask_to_cancel(self, cancel: Callable[[], object]) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                cancel()

        text = "The mirror is not finished. Cancel it? The target runs on, and there is no mirror."
        self.app.push_screen(ConfirmScreen(text), answered)

    # ---- export ----

    def csv_rows(self) -> tuple[str, export.Rows]:
        """See Watch."""
        return self.VIEW, export.mirror(self.shown)
