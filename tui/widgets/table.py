"""A table of any length that renders only its visible rows: 60,000 rows cost no more than 40."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from redirty.tui.render.columns import Field, Value
from redirty.tui.render.rows import Row, cell, end_of
from redirty.tui.widgets import styles
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip


class FieldTable(ScrollView, can_focus=True, inherit_bindings=False):
    """A table of fields. The cursor stays on its row, identified by a key, when rows are sorted again."""

    COMPONENT_CLASSES: ClassVar[set[str]] = styles.COMPONENT_CLASSES
    DEFAULT_CSS = "FieldTable { width: 1fr; height: 1fr; overflow-x: hidden; " + styles.CSS + " }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False, id="table.up"),
        Binding("down,j", "move(1)", "down", show=False, id="table.down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="table.page_up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="table.page_down"),
        Binding("home", "move(-1000000000)", "first row", show=False, id="table.first"),
        Binding("end", "move(1000000000)", "last row", show=False, id="table.last"),
        Binding("s", "sort(1)", "sort", id="table.sort", tooltip="sort by the next column"),
        Binding("S", "sort(-1)", "sort by the previous column", show=False, id="table.sort_back"),
        Binding("r", "reverse", "reverse the order", show=False, id="table.reverse"),
        Binding("enter", "choose", "open the row", show=False, id="table.choose"),
    ]

    @dataclass
    class Chosen(Message):
        """Enter was pressed on a row. row: its index in the data."""

        table: FieldTable
        row: int

        @property
        def control(self) -> FieldTable:
            """See Message."""
            return self.table

    def __init__(self, fields: tuple[Field[Any], ...], *, id: str, sorted_by: str = "") -> None:
        super().__init__(id=id)
        self.fields = fields
        self._data: Any = None
        self._order: list[int] = []
        self._key: Callable[[Any, int], object] = lambda data, i: i
        self._cursor = 0
        self._selected: object = None
        self._palette: styles.Palette | None = None
        self._drawn: dict[int, Row] = {}  # by screen line
        self._default = sorted_by
        self.sorted_by = sorted_by  # name of a field; the data arrive sorted by the default one
        self.reversed = False

    def show(self, data: Any, count: int, key: Callable[[Any, int], object]) -> None:
        """Show other rows.

        Args:
            data: passed to the fields' value().
            count: number of rows.
            key: returns the identity of a row, given data and the row's index.
        """
        at = self._cursor
        self._data, self._key = data, key
        self._order = list(range(count))
        self._sort()
        found = self._find(self._selected) if self._selected is not None and at else at
        self._cursor = min(max(found if found is not None else at, 0), max(count - 1, 0))
        self._selected = self._key_at(self._cursor)
        self.virtual_size = Size(self.size.width, count + 1)
        self._refresh_changed()

    def _refresh_changed(self) -> None:
        """Redraw the visible rows that changed."""
        width, height = self.size
        changed = [
            Region(0, y, width, 1)
            for y, row in self._drawn.items()
            if y < height and self._parts(y, width) != row
        ]
        if changed or not self._drawn:
            self.refresh(*changed)

    def _find(self, key: object) -> int | None:
        for at, i in enumerate(self._order):
            if self._key(self._data, i) == key:
                return at
        return None

    def _key_at(self, at: int) -> object:
        return self._key(self._data, self._order[at]) if at < len(self._order) else None

    def _sort(self) -> None:
        if self.sorted_by != self._default:
            field = next(f for f in self.fields if f.name == self.sorted_by)
            data = self._data
            values = {i: _sortable(field.value(data, i)) for i in self._order}
            self._order.sort(key=values.__getitem__, reverse=not field.left)
        if self.reversed:
            self._order.reverse()

    @property
    def chosen(self) -> int | None:
        """Index in the data of the row under the cursor; None in an empty table."""
        return self._order[self._cursor] if self._cursor < len(self._order) else None

    @property
    def order(self) -> list[int]:
        """Indexes in the data, in the order of the rows."""
        return self._order

    # ---- keys and mouse ----

    def action_move(self, rows: int) -> None:
        """Move the cursor down by a number of rows, up if negative."""
        self._cursor = min(max(self._cursor + rows, 0), max(len(self._order) - 1, 0))
        self._selected = self._key_at(self._cursor)
        top = int(self.scroll_offset.y)
        room = max(self.size.height - 1, 1)
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, force=True)
        elif self._cursor >= top + room:
            self.scroll_to(y=self._cursor - room + 1, animate=False, force=True)
        self.refresh()

    def action_page(self, pages: int) -> None:
        """Move the cursor down by a number of pages, up if negative."""
        self.action_move(pages * max(self.size.height - 2, 1))

    def action_sort(self, step: int) -> None:
        """Sort by another column: step 1 the next one, -1 the previous one."""
        names = [f.name for f in self.fields if f.name]
        at = names.index(self.sorted_by) if self.sorted_by in names else 0
        self.sort_by(names[(at + step) % len(names)])

    def action_reverse(self) -> None:
        """Reverse the order of the rows."""
        self.reversed = not self.reversed
        self._show_again()

    def action_choose(self) -> None:
        """Post Chosen for the row under the cursor."""
        if self.chosen is not None:
            self.post_message(self.Chosen(self, self.chosen))

    def sort_by(self, name: str) -> None:
        """Sort by a field, numbers in descending order, texts in ascending order."""
        self.reversed = self.reversed and name == self.sorted_by
        self.sorted_by = name
        self._show_again()

    def _show_again(self) -> None:
        if self._data is not None:
            self.show(self._data, len(self._order), self._key)

    def on_click(self, event: events.Click) -> None:
        """Sort by a clicked heading; move the cursor to a clicked row; choose a double-clicked one."""
        if event.y == 0:
            left = 0
            for field, width in self._columns(self.size.width):
                if left <= event.x < left + width + 1 and field.name:
                    if field.name == self.sorted_by:
                        self.action_reverse()
                    else:
                        self.sort_by(field.name)
                left += width + 1
            return
        at = int(self.scroll_offset.y) + event.y - 1
        if at < len(self._order):
            self.action_move(at - self._cursor)
            if event.chain == 2:
                self.action_choose()

    # ---- drawing ----

    def _columns(self, width: int) -> list[tuple[Field[Any], int]]:
        """Return the fields that fit, each with its width."""
        shown = [f for f in self.fields if width >= f.min_width]
        left = width - sum(f.width + 1 for f in shown if f.width)
        return [(f, f.width or max(left, 8)) for f in shown]

    def render_line(self, y: int) -> Strip:
        """Return the heading or a row as Textual draws it."""
        width = self.size.width
        if self._palette is None:
            self._palette = styles.Palette(self)
        row = self._drawn[y] = self._parts(y, width)
        return self._palette.strip(row, width)

    def _parts(self, y: int, width: int) -> Row:
        columns = self._columns(width)
        if y == 0:
            return self._heading(columns)
        at = int(self.scroll_offset.y) + y - 1
        if at >= len(self._order):
            return []
        parts: Row = []
        i = self._order[at]
        for field, room in columns:
            text = field.show(field.value(self._data, i))
            if not field.width:
                text = end_of(text, room)
            parts.append((cell(text, room, left=field.left) + " ", ""))
        if at == self._cursor and self.has_focus:
            return [("".join(text for text, _ in parts).ljust(width), "selected")]
        return [("".join(text for text, _ in parts), "")]

    def notify_style_update(self) -> None:
        """Look up the styles again after a change of theme or focus."""
        self._palette = None
        super().notify_style_update()

    def _heading(self, columns: list[tuple[Field[Any], int]]) -> Row:
        row: Row = []
        for field, room in columns:
            mine = bool(field.name) and field.name == self.sorted_by
            heading = field.heading[: room - 1] if mine else field.heading
            mark = ("▲" if self.reversed != field.left else "▼") if mine else ""
            row.append(
                (cell(heading + mark, room, left=field.left) + " ", "key" if mine else "dim")
            )
        return row


def _sortable(value: Value) -> tuple[int, float, str]:
    """Return a sort key; unknown values are below all others."""
    if value is None:
        return (0, 0.0, "")
    return (1, 0.0, value) if isinstance(value, str) else (1, float(value), "")
