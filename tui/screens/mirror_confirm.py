"""The question before a mirror: what will happen, and what may be changed about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from redirty.collector.errors import UsageError
from redirty.collector.units import parse_rate
from redirty.tui.render.mirror import question
from redirty.tui.screens.prompt import prompt
from redirty.tui.snapshots.convergence import parse_downtime
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

    def _prompt(self, title: str, field: str, parse: Callable[[str], object]) -> None:
        """Ask for another value of one of the command's fields."""

        def apply(value: object) -> None:
            self.wish = replace(self.wish, **{field: value})  # type: ignore[arg-type]
            self._show()

        prompt(self.app, title, parse, apply)

    def action_begin(self) -> None:
        """As it says."""
        self.dismiss(self.wish)

    def action_leave(self) -> None:
        """Nothing happens."""
        self.dismiss(None)

    def action_downtime(self) -> None:
        """Another one."""
        self._prompt("downtime: 300ms, 2s", "downtime_s", parse_downtime)

    def action_bandwidth(self) -> None:
        """A limit, or none."""
        self._prompt("send no faster: 1Gbit, 100MiB; empty: no limit", "bandwidth", rate_limit)

    def action_code(self) -> None:
        """For another machine."""
        title = "file with the code of redirty receive; empty: none"
        self._prompt(title, "code_file", code_file)

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


def rate_limit(text: str) -> float | None:
    """Parse a limit in bytes per second; an empty text is none. Raises UsageError."""
    return parse_rate(text) if text.strip() else None


def code_file(text: str) -> str | None:
    """A file with the receiver's code; "": none. Errors: UsageError."""
    if not text.strip():
        return None
    path = Path(text.strip()).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return str(path.absolute())
