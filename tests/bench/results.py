"""The one table of results, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.figures import Interval, Pairs

_HEADINGS = ("what", "measured", "floor", "figure", "95 % interval", "n", "goal", "")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        figure: what the goal is for, a ratio or an absolute figure (unit says which); None when it could not be
            measured: then note is the reason.
        goal: at most, or at_least.
    """

    name: str
    measured: str = ""
    floor: str = ""
    figure: Interval | None = None
    unit: str = "x"
    goal: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """ "met" or "missed" by the whole interval, "unclear" when it lies on both sides of the goal."""
        if self.figure is None:
            return "not run"
        if self.goal is None:
            return ""
        below = self.figure.high <= self.goal, self.figure.low > self.goal
        if self.at_least:
            below = self.figure.low >= self.goal, self.figure.high < self.goal
        return "met" if below[0] else "missed" if below[1] else "unclear"


def of_pairs(name: str, found: Pairs, unit: str, goal: float | None = None, note: str = "") -> Row:
    """Return a row of a ratio; unit: of what was measured and of the floor."""
    return Row(
        name,
        f"{number(found.measured.median)} {unit}",
        f"{number(found.floor.median)} {unit}",
        found.ratio,
        goal=goal,
        note=note,
    )


def not_run(name: str, reason: str) -> Row:
    """Return a row that says why it has no figure."""
    return Row(name, note=reason)


def number(value: float) -> str:
    """Format a number with three or four digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _cells(row: Row) -> tuple[str, ...]:
    if row.figure is None:
        return (row.name, "", "", "", "", "", "", f"not run: {row.note}")
    f, ratio = row.figure, row.unit == "x"

    def show(value: float) -> str:
        return f"{value:.3f}" if ratio else number(value)

    goal = ""
    if row.goal is not None:
        goal = f"{'>=' if row.at_least else '<='} {row.goal:g}"
    after = "  ".join(part for part in (row.verdict, row.note) if part)
    figure = f"{show(f.median)} {row.unit}"
    spread = f"{show(f.low)} to {show(f.high)}"
    return (row.name, row.measured, row.floor, figure, spread, str(f.count), goal, after)


def render(rows: list[Row]) -> str:
    """Return the table as text."""
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADINGS) - 1)]
    lines = []
    for line in cells:
        first = f"{line[0]:<{widths[0]}}"
        middle = [f"{cell:>{width}}" for cell, width in zip(line[1:-1], widths[1:], strict=True)]
        lines.append("  ".join([first, *middle, line[-1]]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines[:1]))
    return "\n".join(lines) + "\n"


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the rows with their verdicts as JSON."""
    return [{**asdict(row), "verdict": row.verdict} for row in rows]
