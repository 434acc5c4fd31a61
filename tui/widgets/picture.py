"""A panel that draws rows computed from a snapshot and the panel's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from redirty.tui.render.rows import Row
from redirty.tui.widgets import styles
from redirty.tui.widgets.plain import plain
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

S = TypeVar("S")


class Picture(Widget, Generic[S]):
    """Shows the rows that draw(snapshot, width, height) returns; empty before the first snapshot."""

    COMPONENT_CLASSES: ClassVar[set[str]] = styles.COMPONENT_CLASSES
    DEFAULT_CSS = "Picture { width: 1fr; height: 1fr; " + styles.CSS + " }"

    def __init__(
        self, draw: Callable[[S, int, int], list[Row]], *, id: str, title: str = ""
    ) -> None:
        super().__init__(id=id)
        self._make = draw
        self._snapshot: S | None = None
        self._drawn: list[Row] | None = None
        self._drawn_size = (0, 0)
        self._palette: styles.Palette | None = None
        if title:
            self.border_title = plain(title).markup

    def show(self, snapshot: S) -> None:
        """Show another snapshot, redrawing only the rows that changed."""
        self._snapshot = snapshot
        old, (width, height) = self._drawn, self.size
        if old is None or self._drawn_size != (width, height):
            self._drawn = None
            self.refresh()
            return
        new = self._drawn = self._make(snapshot, width, height)
        changed = [
            Region(0, y, width, 1)
            for y in range(min(height, max(len(old), len(new))))
            if old[y : y + 1] != new[y : y + 1]
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return a row as Textual draws it."""
        width, height = self.size
        if self._drawn is None or self._drawn_size != (width, height):
            self._drawn_size = (width, height)
            known = self._snapshot is not None
            self._drawn = self._make(self._snapshot, width, height) if known else []  # type: ignore[arg-type]
        row = self._drawn[y] if y < len(self._drawn) else []
        if self._palette is None:
            self._palette = styles.Palette(self)
        return self._palette.strip(row, width)

    def notify_style_update(self) -> None:
        """Look up the styles again after a change of theme."""
        self._palette = None
        super().notify_style_update()
