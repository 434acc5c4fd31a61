"""The question before a mirror: what will happen, and what may be changed about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from redirty.collector.errors import UsageError
from redirty.collector.units import parse_rate
from redirty.tui.render.mirror import question
from redirty.tui.screens.prompt import PromptScreen
from redirty.tui.screens.target_layout import parse_downtime
from redirty.tui.snapshots.mirror import MirrorCommand
from redirty.tui.widgets.picture import Picture
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen


class MirrorConfirmScreen(ModalScreen[MirrorCommand | None]):
    """Gives what is to be done, None when nothing is. Only a key of its own says yes: enter may be one
    too many of the line before."""

    CSS = """
    MirrorConfirmScreen { align: center middle; }
    MirrorConfirmScreen > Vertical { width: 78; max-width: 100%; height: auto; max-height: 100%;
        border: round $warning; background: $surface; padding: 0 1; }
    """
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "begin", "begin", id="mirror.yes"),
        Binding("escape,n", "leave", "leave", id="mirror.no"),
        Binding("d", "downtime", "downtime", id="mirror.downtime"),
        Binding("b", "bandwidth", "bandwidth", id="mirror.bandwidth"),
        Binding("c", "code", "code file", id="mirror.code"),
        Binding("v", "verify", "verify", id="mirror.verify"),
    ]

    def __init__(self, wish: MirrorCommand, verdict: str) -> None:
        super().__init__()
        self.wish = wish
        self._verdict = verdict

    def compose(self) -> ComposeResult:
        """See Screen."""
        with Vertical() as box:
            box.border_title = "mirror it?"
            box.border_subtitle = "y begins, escape leaves all as it is"
            yield Picture[MirrorCommand](
                lambda wish, width, _: question(wish, self._verdict, width), id="question"
            )

    def on_mount(self) -> None:
        """See Screen."""
        self._show()

    def on_resize(self) -> None:
        """More or less fits on a line now."""
        self._show()

    def _show(self) -> None:
        picture = self.query_one(Picture)
        inner = min(78, self.app.size.width) - 4
        picture.styles.height = len(question(self.wish, self._verdict, inner))
        picture.show(self.wish)

    def _typed(
        self, title: str, check: Callable[[str], object], take: Callable[[str], None]
    ) -> None:
        def taken(text: str | None) -> None:
            if text is not None:
                take(text)
                self._show()

        self.app.push_screen(PromptScreen(title, "", check), taken)

    def action_begin(self) -> None:
        """As it says."""
        self.dismiss(self.wish)

    def action_leave(self) -> None:
        """Nothing happens."""
        self.dismiss(None)

    def action_downtime(self) -> None:
        """Another one."""

        def take(text: str) -> None:
            self.wish = replace(self.wish, downtime_s=parse_downtime(text))

        self._typed("downtime: 300ms, 2s", parse_downtime, take)

    def action_bandwidth(self) -> None:
        """A limit, or none."""

        def check(text: str) -> float | None:
            return parse_rate(text) if text.strip() else None

        def take(text: str) -> None:
            self.wish = replace(self.wish, bandwidth=check(text))

        self._typed("send no faster: 1Gbit, 100MiB; empty: no limit", check, take)

    def action_code(self) -> None:
        """For another machine."""

        def take(text: str) -> None:
            self.wish = replace(self.wish, code_file=code_file(text))

        self._typed("file with the code of redirty receive; empty: none", code_file, take)

    def action_verify(self) -> None:
        """Compare, or not."""
        self.wish = replace(self.wish, verify=not self.wish.verify)
        self._show()


def destination(text: str) -> str:
    """Where to: HOST:PORT, or a full path of a directory that is not there yet. Errors: UsageError,
    RedirtyError."""
    from redirty.collector.mirror.transport.listener import parse_address

    text = text.strip()
    if not text:
        raise UsageError("type a directory that does not exist yet, or HOST:PORT")
    if parse_address(text) is not None:
        return text
    path = Path.cwd() / Path(text).expanduser()
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already: name a new directory")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}")
    return str(path)


def code_file(text: str) -> str | None:
    """A file with the receiver's code; "": none. Errors: UsageError."""
    if not text.strip():
        return None
    path = Path(text.strip()).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return str(path.absolute())
