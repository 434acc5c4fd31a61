"""A question for one line of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from redirty.collector.errors import RedirtyError
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static


class PromptScreen(ModalScreen[str | None]):
    """Gives what was typed, once check() takes it; None when it was left by escape."""

    CSS = """
    PromptScreen { align: center middle; }
    PromptScreen > Vertical { width: 64; max-width: 95%; height: auto; border: round $primary;
        background: $surface; padding: 0 1; }
    PromptScreen Static { height: auto; color: $text-error; }
    """
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave", id="typed.leave"),
    ]

    def __init__(self, title: str, value: str, check: Callable[[str], object]) -> None:
        super().__init__()
        self._title = title
        self._value = value
        self._check = check

    def compose(self) -> ComposeResult:
        """See Screen."""
        with Vertical() as box:
            box.border_title = self._title
            box.border_subtitle = "enter takes it, escape leaves"
            yield Input(self._value, id="typed")
            yield Static("", id="wrong")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Takes it, or says what is wrong with it."""
        try:
            self._check(event.value)
        except RedirtyError as e:
            self.query_one("#wrong", Static).update(str(e))
        else:
            self.dismiss(event.value)

    def action_leave(self) -> None:
        """Nothing is changed."""
        self.dismiss(None)
