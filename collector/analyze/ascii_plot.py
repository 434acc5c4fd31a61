"""A small plot of W(t) in plain text, for terminals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from redirty.collector.units import show_pages, show_time

WIDTH, HEIGHT = 60, 10
_LABEL = 11


def of_recording(directory: Path) -> list[str]:
    """Plot the average curve of a recording. Raises: RedirtyError when it cannot be read."""
    import numpy as np
    from redirty.collector.analyze.observations import average_curve

    found = average_curve(directory)
    if found is None:
        return []
    times, pages = found
    last_s = float(times[-1])
    first_s = max(float(times[0]), last_s * 1e-4)
    return plot(lambda t: float(np.interp(t, times, pages)), first_s, last_s, last_s)


def plot(
    curve: Callable[[float], float],
    first_s: float,
    last_s: float,
    measured_s: float,
    interval: tuple[Callable[[float], float], Callable[[float], float]] | None = None,
) -> list[str]:
    """Plot W(t) over the logarithm of t from first_s to last_s; return the lines.

    `*`: measured, up to measured_s; `o`: extrapolated; `:`: between the two curves of an interval.
    """
    if not 0 < first_s < last_s:
        return []
    steps = math.log(last_s / first_s) / (WIDTH - 1)
    times = [first_s * math.exp(steps * i) for i in range(WIDTH)]
    values = [curve(t) for t in times]
    ends = [(interval[0](t), interval[1](t)) for t in times] if interval else []
    # An interval far above must not flatten the curve itself.
    top = max(values + [min(high, 1.5 * values[-1]) for _, high in ends])
    if top <= 0:
        return []
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]

    def row(pages: float) -> int:
        return HEIGHT - 1 - min(HEIGHT - 1, round(pages / top * (HEIGHT - 1)))

    for column, (low, high) in enumerate(ends):
        for line in range(row(min(high, top)), row(low) + 1):
            rows[line][column] = ":"
    for column, (t, pages) in enumerate(zip(times, values, strict=True)):
        rows[row(pages)][column] = "*" if t <= measured_s * (1 + 1e-9) else "o"
    lines = []
    for number, cells in enumerate(rows):
        label = show_pages(top * (HEIGHT - 1 - number) / (HEIGHT - 1)) if number % 3 == 0 else ""
        lines.append(f"{label:>{_LABEL}} |{''.join(cells).rstrip()}")
    lines.append(" " * _LABEL + " +" + "-" * WIDTH)
    left, right = show_time(first_s), show_time(last_s)
    middle = show_time(math.sqrt(first_s * last_s))
    half = WIDTH // 2 - len(middle) // 2
    axis = f"{left:<{half}}{middle:<{WIDTH - half - len(right)}}{right}"
    lines.append(" " * (_LABEL + 2) + axis)
    return lines
