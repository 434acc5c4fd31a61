"""A prompt for one line of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from redirty.collector.errors import RedirtyError
from redirty.tui.widgets.plain import TYPED, plain
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

T = TypeVar("T")


class PromptScreen(ModalScreen[str | None]):
    """Returns what was typed, once check() accepts it; None if cancelled."""

    CSS = """
    PromptScreen { align: center middle; }
    PromptScreen > Vertical { width: 64; max-width: 95%; height: auto; border: round $primary;
        background: $surface; padding: 0 1; }
    PromptScreen Static { height: auto; color: $text-error; }
    """
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "cancel", id="prompt.leave"),
    ]

    def __init__(self, title: str, check: Callable[[str], object]) -> None:
        super().__init__()
        self._title = title
        self._check = check

    def compose(self) -> ComposeResult:
        """See Screen."""
        with Vertical() as box:
            box.border_title = plain(self._title).markup
            box.border_subtitle = "enter: accept, escape: cancel"
            yield Input(id="typed", restrict=TYPED)
            yield Static("", id="wrong")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Accept the text, or show why it is invalid."""
        try:
            self._check(event.value)
        except RedirtyError as e:
            self.query_one("#wrong", Static).update(plain(str(e)))
        else:
            self.dismiss(event.value)

    def action_leave(self) -> None:
        """Cancel."""
        self.dismiss(None)


def prompt(
    app: App[Any], title: str, parse: Callable[[str], T], apply: Callable[[T], None]
) -> None:
    """Ask for a line of text and pass its parsed value to apply(), unless the prompt is cancelled.

    Args:
        app: the application to show the prompt in.
        title: what to enter.
        parse: returns the value of a text, or raises RedirtyError if the text is invalid.
        apply: takes the value.
    """
    values: list[T] = []

    def check(text: str) -> None:
        values.append(parse(text))

    def answered(text: str | None) -> None:
        if text is not None:
            apply(values[-1])

    app.push_screen(PromptScreen(title, check), answered)
