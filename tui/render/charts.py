"""Bars, curves and heat maps drawn with block and braille characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from redirty.tui.render.rows import Row

Floats = npt.NDArray[np.float64]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEAT = " ░▒▓█"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of a braille cell, by row
_MAX_STRETCH = 4
LABEL = 10  # width of an axis' labels


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the latest values as one line of text, the newest on the right."""
    recent = list(values)[-width:]
    top = max(recent, default=0.0)
    if top <= 0:
        return ("▁" * len(recent)).rjust(width)
    steps = (_EIGHTHS[1 + min(7, int(v / top * 7.999))] if v > 0 else "▁" for v in recent)
    return "".join(steps).rjust(width)


def bars(
    lower: Floats, upper: Floats, width: int, height: int, label: Callable[[float], str]
) -> list[Row]:
    """Return stacked bars over time, the newest on the right, with an axis on the left.

    Args:
        lower: (n,) drawn in full blocks; NaN where unknown.
        upper: (n,) not below lower; the difference is drawn in light blocks.
        width: in cells, including the axis.
        height: in rows.
        label: returns the axis label of a value.
    """
    room = max(width - LABEL - 1, 1)
    low, high = (np.repeat(np.nan_to_num(v[-room:]), stretch(len(v), room)) for v in (lower, upper))
    top = nice(float(high.max(initial=0.0)))
    scale = height * 8 / top
    low8, high8 = np.rint(low * scale).astype(int), np.rint(high * scale).astype(int)
    rows: list[Row] = []
    for line in range(height):
        base = (height - 1 - line) * 8
        text: Row = [(" " * (room - len(low)), "")]
        for dark, all_ in zip(low8.tolist(), high8.tolist(), strict=True):
            text.append(_bar_cell(dark - base, all_ - base))
        rows.append([(axis(label(top), label(top / 2), line, height), "dim"), *joined(text)])
    return rows


def stretch(count: int, room: int) -> int:
    """Return the width of a round in cells: more than one if there are few rounds."""
    return max(1, min(_MAX_STRETCH, room // max(count, 1)))


def _bar_cell(low: int, high: int) -> tuple[str, str]:
    if low >= 8:
        return "█", "again"
    if low > 0 and high - low < 4:
        return _EIGHTHS[low], "again"
    if high >= 4:
        return "░", "new"
    if high > 0:
        return _EIGHTHS[max(high, low)], "new" if high > low else "again"
    return " ", ""


def axis(top: str, middle: str, line: int, height: int) -> str:
    """Return a row's label and the axis. line: the row, from the top."""
    text = ""
    if line == 0:
        text = top
    elif line == height - 1:
        text = "0"
    elif line == (height - 1) // 2 and height >= 5:
        text = middle
    return f"{text:>{LABEL}}│"


def nice(value: float) -> float:
    """Return a round number not below a value."""
    if value <= 0:
        return 1.0
    power = 2.0 ** np.floor(np.log2(value))
    return float(next(power * step for step in (1, 1.25, 1.5, 1.75, 2) if power * step >= value))


def joined(parts: Row) -> Row:
    """Merge neighbouring parts of the same style."""
    found: Row = []
    for text, style in parts:
        if found and found[-1][1] == style:
            found[-1] = (found[-1][0] + text, style)
        else:
            found.append((text, style))
    return found


class Canvas:
    """A drawing of braille dots, 2 by 4 in a cell; a cell has the style of what was drawn last."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._dots = np.zeros((height, width), np.int64)
        self._styles = [[""] * width for _ in range(height)]
        self._marks: dict[tuple[int, int], str] = {}

    def dot(self, x: float, y: float, style: str) -> None:
        """Draw a dot. x, y: 0 to 1 from the lower left; dots outside are left out."""
        if not (0 <= x <= 1 and 0 <= y <= 1):
            return
        column = min(int(x * self.width * 2), self.width * 2 - 1)
        row = min(int((1 - y) * self.height * 4), self.height * 4 - 1)
        self._dots[row >> 2, column >> 1] |= _DOTS[row & 3][column & 1]
        self._styles[row >> 2][column >> 1] = style

    def curve(self, x: Floats, y: Floats, style: str, every: int = 1) -> None:
        """Draw a curve through points, (n,) ascending by x. every: draw only each every-th dot."""
        centres = (np.arange(self.width * 2) + 0.5) / (self.width * 2)
        inside = centres[(centres >= x[0]) & (centres <= x[-1])]
        values = np.interp(inside, x, y)
        before: float | None = None
        for number, (a, b) in enumerate(zip(inside.tolist(), values.tolist(), strict=True)):
            if number % every == 0:
                steps = 1 if before is None or every > 1 else int(abs(b - before) * self.height * 4)
                for i in range(max(steps, 1)):
                    self.dot(
                        a, b if before is None else b + (before - b) * i / max(steps, 1), style
                    )
            before = b

    def mark(self, x: float, y: float, glyph: str, style: str) -> None:
        """Draw a character."""
        if 0 <= x <= 1 and 0 <= y <= 1:
            at = (
                min(int((1 - y) * self.height), self.height - 1),
                min(int(x * self.width), self.width - 1),
            )
            self._marks[at] = glyph
            self._styles[at[0]][at[1]] = style

    def rows(self) -> list[Row]:
        """Return the drawing."""
        found: list[Row] = []
        for line in range(self.height):
            row: Row = []
            for column in range(self.width):
                bits = int(self._dots[line, column])
                glyph = self._marks.get((line, column)) or (chr(0x2800 + bits) if bits else " ")
                row.append((glyph, self._styles[line][column] if glyph != " " else ""))
            found.append(joined(row))
        return found


def heat_rows(pages: npt.NDArray[np.int64], height: int, width: int) -> list[Row]:
    """Return a matrix as `height` rows of glyphs, in five steps on a logarithmic scale.

    Args:
        pages: (rows, columns), the latest column last; the latest columns that fit are drawn.
        height: in rows; matrix rows are added up if there are more.
        width: in cells.
    """
    matrix = np.repeat(pages[:, -width:].astype(np.float64), stretch(pages.shape[1], width), axis=1)
    if len(matrix) > height:
        bounds = np.linspace(0, len(matrix), height + 1).astype(np.int64)[:-1]
        matrix = np.add.reduceat(matrix, bounds, axis=0)
    top = max(float(matrix.max(initial=0.0)), 1.0)
    steps = np.where(matrix > 0, np.ceil(4 * np.log1p(matrix) / np.log1p(top)), 0).astype(int)
    found: list[Row] = []
    for line in np.minimum(steps, 4).tolist():
        pad: Row = [(" " * (width - len(line)), "")]
        cells = [(_HEAT[s], f"heat{s}" if s else "") for s in line]
        found.append(joined([*pad, *cells]))
    return found
