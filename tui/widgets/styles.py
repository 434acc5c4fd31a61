"""Maps style names to component classes, which the theme gives colours."""

from __future__ import annotations

from redirty.collector.errors import one_line
from redirty.tui.render.rows import STYLES, Row
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

COMPONENT_CLASSES = {f"part--{name}" for name in STYLES if name}

CSS = """
    & > .part--dim { color: $text-muted; }
    & > .part--title { text-style: bold reverse; }
    & > .part--good { color: $text-success; text-style: bold; }
    & > .part--bad { color: $text-error; text-style: bold; }
    & > .part--warn { color: $text-warning; }
    & > .part--key { color: $text-accent; text-style: bold; }
    & > .part--again { color: $primary; }
    & > .part--new { color: $secondary; }
    & > .part--curve { color: $success; text-style: bold; }
    & > .part--link { color: $warning; }
    & > .part--heat1 { color: $primary 40%; }
    & > .part--heat2 { color: $primary 60%; }
    & > .part--heat3 { color: $primary 80%; }
    & > .part--heat4 { color: $primary; text-style: bold; }
    & > .part--selected { background: $block-cursor-background; color: $block-cursor-foreground;
        text-style: bold; }
"""


class Palette:
    """The current styles of a widget, looked up only once instead of for every part of every row."""

    def __init__(self, widget: Widget) -> None:
        self.base = widget.rich_style
        self._widget = widget
        self._known: dict[str, Style] = {"": self.base}

    def __getitem__(self, name: str) -> Style:
        found = self._known.get(name)
        if found is None:
            found = self.base + self._widget.get_component_rich_style(f"part--{name}")
            self._known[name] = found
        return found

    def strip(self, row: Row, width: int) -> Strip:
        """Convert a row to Textual's form, padded or cropped to a width."""
        segments = [Segment(one_line(part), self[name]) for part, name in row if part]
        return Strip(segments).crop(0, width).extend_cell_length(width, self.base)
