"""The heat map: addresses, folded over those in use, by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from redirty.collector.pageset import U64
from redirty.tui.snapshots.round_summary import (
    I64,
    PID_SHIFT,
    WORD_SHIFT,
    Floats,
    RoundSummary,
    coarser,
)

HEAT_COLUMNS = 120  # rounds
_ROWS = 64


@dataclass(frozen=True, eq=False)
class HeatMap:
    """pages: (rows, columns) dirty pages, a row a stretch of used addresses, a column a round, the
    latest last. first: (rows,) (pid, address) at which each begins. place_bytes: of the places that rows
    are made of, places: how many there are.
    start_s: (columns,) of the rounds."""

    pages: I64
    first: tuple[tuple[int, int], ...]
    start_s: Floats
    place_bytes: int
    places: int


def heat_map(recent: Sequence[RoundSummary]) -> HeatMap | None:
    """Of some rounds; None when nothing was written."""
    shift = max((f.places.shift for f in recent), default=0)
    columns = [coarser(f.places.keys, f.places.pages, shift) for f in recent]
    used: U64 = (
        np.unique(np.concatenate([keys for keys, _ in columns]))
        if columns
        else np.empty(0, np.uint64)
    )
    if len(used) == 0:
        return None
    rows = min(len(used), _ROWS)
    bounds = np.linspace(0, len(used), rows + 1).astype(np.int64)[:-1]
    pages = np.zeros((rows, len(columns)), np.int64)
    for column, (keys, counts) in enumerate(columns):
        if len(keys):
            at = np.searchsorted(bounds, np.searchsorted(used, keys), side="right") - 1
            pages[:, column] = np.bincount(at, counts, rows).astype(np.int64)
    mask = np.uint64((1 << PID_SHIFT) - 1)
    firsts = [(int(key) >> PID_SHIFT, int(key & mask) << WORD_SHIFT) for key in used[bounds]]
    start_s = np.array([f["start_s"] for f in recent])
    return HeatMap(pages, tuple(firsts), start_s, 1 << (WORD_SHIFT + shift), len(used))
