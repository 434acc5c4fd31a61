"""Rows of styled parts, which all panels are made of.

The screen's theme gives each style name a colour; glyphs alone must be sufficient without colour.
"""

from __future__ import annotations

from redirty.collector.errors import one_line

_MAX_MESSAGE_LINES = 8

Part = tuple[str, str]  # text, style name
Row = list[Part]

STYLES = (
    "", "dim", "title", "good", "bad", "warn", "key",
    "again", "new", "curve", "link", "heat1", "heat2", "heat3", "heat4", "selected",
)  # fmt: skip


def width_of(row: Row) -> int:
    """Return the width of a row in cells; all characters are one cell wide."""
    return sum(len(text) for text, _ in row)


def clipped(row: Row, width: int) -> Row:
    """Return the beginning of a row, at most `width` cells."""
    found: Row = []
    left = width
    for text, style in row:
        if left <= 0:
            break
        found.append((text[:left], style))
        left -= len(text)
    return found


def wrapped(text: str, width: int, style: str = "", indent: str = "") -> list[Row]:
    """Wrap a text into rows of one style. indent: of all rows but the first."""
    import textwrap

    lines = textwrap.wrap(text, max(width, 8), subsequent_indent=indent) or [""]
    return [[(line, style)] for line in lines]


def message_rows(message: str, width: int, style: str) -> list[Row]:
    """Wrap a message into a bounded number of rows: what to do comes last, and must be visible."""
    return wrapped(one_line(message), width, style)[:_MAX_MESSAGE_LINES]


def cell(text: str, width: int, *, left: bool = False) -> str:
    """Return a text padded to a column's width, and cut at its end if it is too long."""
    if len(text) > width:
        text = text[: width - 1] + "…" if width > 1 else text[:width]
    return f"{text:<{width}}" if left else f"{text:>{width}}"


def end_of(text: str, width: int) -> str:
    """Return the end of a path, which is more specific than its start."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :] if width > 1 else ""
