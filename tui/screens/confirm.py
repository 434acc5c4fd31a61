"""A yes-or-no question."""

from __future__ import annotations

from typing import ClassVar

from redirty.tui.widgets.plain import plain
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static


class ConfirmScreen(ModalScreen[bool]):
    """Returns True for yes, False for no."""

    CSS = """
    ConfirmScreen { align: center middle; }
    ConfirmScreen > Vertical { width: 64; max-width: 95%; height: auto; border: round $warning;
        background: $surface; padding: 0 1; }
    ConfirmScreen Static { height: auto; }
    """
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes", id="confirm.yes"),
        Binding("escape,n", "answer(False)", "no", id="confirm.no"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """See Screen."""
        with Vertical() as box:
            box.border_subtitle = "y: yes, escape: no"
            yield Static(plain(self._text))

    def action_answer(self, yes: bool) -> None:
        """Close the question with an answer."""
        self.dismiss(yes)
