"""The mirror screen: passes, decisions with their reasons, the outcome."""

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
The target's memory is copied while it runs; then, pass by pass, the pages it wrote meanwhile. Once the rest \
can be copied within the downtime, the target is stopped, the rest is copied, and the target is resumed. If it \
does not converge, the target is not stopped.

  pass        one iteration over a set of pages; the first one covers all pages
  zero        pages of zeros, which need not be sent
  unchanged   pages written since they were sent, with the same contents
  deferred    hot pages, deferred to the last pass, during which the target is stopped
  dirty/s     pages that the target wrote during the pass

Press x to cancel: the target keeps running, the mirror is discarded. The mirror is a separate process; it is \
cancelled when this screen ends, however it ends.
"""


class MirrorScreen(Watch):
    """Runs a mirror; can be left once it has ended or was cancelled."""

    VIEW = "mirror"
    HELP = _HELP
    SCOPED_CSS = False
    CSS = """
    MirrorScreen #heading { height: 2; }
    MirrorScreen #progress { height: 1; }
    MirrorScreen #passes, MirrorScreen #decisions {
        border-top: solid $primary-muted; border-title-color: $text-accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel", "cancel", id="mirror.cancel", tooltip="cancel and discard the mirror"),
        Binding("escape", "leave", "back", id="leave",
                tooltip="back to the target, once the mirror has ended"),
        Binding("q,ctrl+c", "leave_all", "quit", id="quit", key_display="q"),
    ]  # fmt: skip

    def __init__(self, reader: Mirror) -> None:
        super().__init__()
        self.reader = reader
        self.shown: MirrorSnapshot | None = None

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Picture[MirrorSnapshot](self._heading, id="heading")
        yield Picture(draw.progress, id="progress")
        yield Picture(draw.passes, id="passes", title="passes")
        yield Picture(draw.decisions, id="decisions", title="decisions")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Start the mirror."""
        self.reader.on_snapshot = self.waker()
        self.register(self.reader)
        self.reader.start()
        self.show_latest()
        self.set_interval(0.5, self.show_latest)

    def on_unmount(self) -> None:
        """Cancel the mirror if it still runs."""
        self.reader.request_stop()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._show()

    def _heading(self, s: MirrorSnapshot, width: int, height: int) -> list[Row]:
        return draw.heading(s, width)

    @property
    def finished(self) -> bool:
        """True once the mirror has ended."""
        latest = self.reader.latest
        return latest is not None and latest.progress.stage.finished

    def show_latest(self) -> None:
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
        """Cancel the mirror, without a question."""
        if not self.finished:
            self.reader.cancel()

    def action_leave(self) -> None:
        """Return to the target, or ask whether to cancel the mirror."""
        if self.finished:
            self.forget(self.reader)
            self.dismiss()
        else:
            self._ask_to_cancel(self.reader.cancel)

    def action_leave_all(self) -> None:
        """End the program, or ask whether to cancel the mirror."""
        if self.finished:
            self.app.exit()
        else:
            self._ask_to_cancel(self.app.exit)

    def _ask_to_cancel(self, cancel: Callable[[], object]) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                cancel()

        text = "The mirror is not complete. Cancel it? The target keeps running, the mirror is discarded."
        self.app.push_screen(ConfirmScreen(text), answered)

    # ---- export ----

    def csv_rows(self) -> tuple[str, export.Rows]:
        """See Watch."""
        return self.VIEW, export.mirror(self.shown)
