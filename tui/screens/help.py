"""Help on a screen: its contents, and its current key bindings."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static


class HelpScreen(ModalScreen[None]):
    """The help; any of its keys closes it. It covers the screen below, which then need not be drawn."""

    CSS = """
    HelpScreen { align: center middle; background: $background; }
    HelpScreen > VerticalScroll { width: 90%; max-width: 100; height: 90%; border: round $primary;
        padding: 0 1; background: $surface; }
    HelpScreen Static { height: auto; }
    """
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,f1,enter", "dismiss", "close", id="help.close"),
    ]

    def __init__(self, text: str, about: Screen[None]) -> None:
        super().__init__()
        self._text = text
        self._about = about

    def compose(self) -> ComposeResult:
        """See Screen."""
        with VerticalScroll() as box:
            box.border_title = "help"
            box.border_subtitle = "press escape to close"
            yield Static(Text(self._text), id="help-text")
            yield Static(self._keys(), id="help-keys")  # text: a Text

    def _keys(self) -> Text:
        text = Text("\nkeys\n", style="bold")
        listed = set()
        for active in self._about.active_bindings.values():
            b = active.binding
            if not b.description or b.action in listed or b.system:
                continue
            listed.add(b.action)
            keys = [
                self.app.get_key_display(other.binding)
                for other in self._about.active_bindings.values()
                if other.binding.action == b.action
            ]
            shown = ", ".join(dict.fromkeys(keys))
            text.append(f"  {shown:<22} ", style="bold")
            text.append(f"{b.tooltip or b.description}\n", style="not bold")
        return text
