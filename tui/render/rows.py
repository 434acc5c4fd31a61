"""Rows of styled parts, the only thing that pictures are made of. Style names are given colours by the
screen's theme; without colour, glyphs alone must tell."""

from __future__ import annotations

from redirty.collector.errors import one_line

_MESSAGE_LINES = 8

Part = tuple[str, str]  # text, style name
Row = list[Part]

# what a style stands for; the screen knows no others
STYLES = (
    *("", "dim", "title", "good", "bad", "warn", "key"),
    *("again", "new", "curve", "link", "heat1", "heat2", "heat3", "heat4", "selected"),
)


def width_of(row: Row) -> int:
    """In cells; texts are of single-width characters."""
    return sum(len(text) for text, _ in row)


def clipped(row: Row, width: int) -> Row:
    """No wider than that."""
    found: Row = []
    left = width
    for text, style in row:
        if left <= 0:
            break
        found.append((text[:left], style))
        left -= len(text)
    return found


def wrapped(text: str, width: int, style: str = "", indent: str = "") -> list[Row]:
    """Lines of a text."""
    import textwrap

    lines = textwrap.wrap(text, max(width, 8), subsequent_indent=indent) or [""]
    return [[(line, style)] for line in lines]


def told(message: str, width: int, style: str) -> list[Row]:
    """What happened, whole if it is not endless: what to do about it comes last."""
    return wrapped(one_line(message), width, style)[:_MESSAGE_LINES]


def cell(text: str, width: int, *, left: bool = False) -> str:
    """A text in a column; the end of one that is too long is left out, of a path its beginning."""
    if len(text) > width:
        text = text[: width - 1] + "…" if width > 1 else text[:width]
    return f"{text:<{width}}" if left else f"{text:>{width}}"


def end_of(text: str, width: int) -> str:
    """The end of a path, which tells more than its beginning."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :] if width > 1 else ""
