"""The heat map: dirty pages by address block and round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from redirty.collector.pageset import U64
from redirty.tui.snapshots.round_summary import (
    BLOCK_SHIFT,
    I64,
    PID_SHIFT,
    Floats,
    RoundSummary,
    coarsen,
)

HEAT_COLUMNS = 120  # rounds
_ROWS = 64


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Dirty pages by address and time. Only blocks that were written have a row.

    Attributes:
        pages: (rows, columns) dirty pages; a row is a range of used blocks, a column a round, the
            latest one last.
        first: (rows,) the (pid, address) at which each row starts.
        start_s: (columns,) start of each round.
        block_bytes: size of a block.
        blocks: number of blocks.
    """

    pages: I64
    first: tuple[tuple[int, int], ...]
    start_s: Floats
    block_bytes: int
    blocks: int


def heat_map(recent: Sequence[RoundSummary]) -> HeatMap | None:
    """Compute the heat map of rounds; None if nothing was written in them."""
    shift = max((r.page_counts.shift for r in recent), default=0)
    columns = [coarsen(r.page_counts.keys, r.page_counts.pages, shift) for r in recent]
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
    firsts = [(int(key) >> PID_SHIFT, int(key & mask) << BLOCK_SHIFT) for key in used[bounds]]
    start_s = np.array([r["start_s"] for r in recent])
    return HeatMap(pages, tuple(firsts), start_s, 1 << (BLOCK_SHIFT + shift), len(used))
