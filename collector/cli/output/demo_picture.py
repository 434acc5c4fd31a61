"""The picture of the demo: how often each part of the workload's memory was written, a line for each area."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from redirty.collector.units import show_bytes

COLUMNS = 78
_BAR = 44
_BLOCKS, _PLAIN = " ░▒▓█", " .:*#"


def ramp(encoding: str | None) -> str:
    """Return characters from never to always written that an output can show."""
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return _PLAIN
    return _BLOCKS


def bar(written: npt.NDArray[np.float64], shades: str) -> str:
    """Draw an area from its first page to its last.

    written: (n,) for each page the share of the rounds in which it was written, n > 0.
    """
    width = min(_BAR, len(written))
    parts = [float(part.mean()) for part in np.array_split(written, width)]
    steps = len(shades) - 1
    return "".join(shades[min(int(np.ceil(part * steps)), steps)] for part in parts)


def picture(
    areas: Mapping[str, Sequence[int]],
    pages: npt.NDArray[np.uint64],
    rounds_dirty: npt.NDArray[np.int64],
    rounds: int,
    shades: str,
    page_size: int,
) -> list[str]:
    """Return a heading and a line for each area.

    Args:
        areas: (start, size in bytes) by name.
        pages: (n,) addresses of the pages that were ever dirty.
        rounds_dirty: (n,) in how many rounds each was.
        rounds: number of all rounds, > 0.
        shades: see ramp().
        page_size: in bytes.
    """
    lines = [
        f"written in: {shades[-1]} every round  {shades[1]} some rounds, from the first page on"
    ]
    for name, (start, size) in areas.items():
        written = np.zeros(size // page_size)
        inside = (pages >= start) & (pages < start + size)
        written[(pages[inside] - np.uint64(start)) // np.uint64(page_size)] = (
            rounds_dirty[inside] / rounds
        )
        again = int(np.count_nonzero(written > 1 / rounds))
        share = f"{again / len(written):.0%} again" if again else "never"
        lines.append(f"  {name:<5}{show_bytes(size):>10}  {bar(written, shades):<{_BAR}}  {share}")
    return lines
