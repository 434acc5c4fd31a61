"""physical.csv: the bitmap of dirty page frames, round by round. physical.parquet: the side list,
which tells in which frame each dirty page lies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from redirty.collector.bitmap import PAGE_SHIFT, PAGES_PER_REGION, PageSet
from redirty.collector.export import columns, files
from redirty.collector.export.parts import Parts, arrow
from redirty.collector.frames import NO_FRAME, Moved, PhysicalRound

_ROWS_A_PART = 1 << 20
_PART_EVERY_S = 60.0
_REGION_BYTES = PAGES_PER_REGION // 8


class PhysicalFiles:
    """Writes what a round's dirty pages are physically.

    The side list has a row only where a page's frame is news, so it stays short: a page lies
    where the last row of it, up to a round, says.
    """

    def __init__(self, directory: Path) -> None:
        self._arrow, parquet = arrow("--physical")
        self._bitmap = files.CsvFile(directory / "physical.csv", columns.PHYSICAL)
        self._parts = Parts(directory, "physical", parquet)
        self._waiting: list[tuple[int, Moved]] = []
        self._rows = 0
        self._due = time.monotonic() + _PART_EVERY_S

    def add(self, number: int, found: PhysicalRound) -> None:
        """Writes a round of a number down. Errors: RedirtyError."""
        self._waiting += [(number, moved) for moved in found.moved]
        self._rows += sum(len(moved.pages) for moved in found.moved)
        if self._rows >= _ROWS_A_PART or (self._rows and time.monotonic() > self._due):
            self._flush()
        self._bitmap.append(bitmap_rows(number, found.frames))

    def _flush(self) -> None:
        if self._rows:
            self._parts.add(self._table(self._waiting))
            self._waiting, self._rows = [], 0
        self._due = time.monotonic() + _PART_EVERY_S

    def _table(self, waiting: list[tuple[int, Moved]]) -> Any:
        none = np.empty(0, np.uint64)
        counts = [len(moved.pages) for _, moved in waiting]
        frames = np.concatenate([none, *(moved.frames for _, moved in waiting)])
        pages = np.concatenate([none, *(moved.pages for _, moved in waiting)])
        a = self._arrow
        return a.table(
            {
                "round": np.repeat(np.array([n for n, _ in waiting], np.int32), counts),
                "pid": np.repeat(np.array([m.pid for _, m in waiting], np.int32), counts),
                "address": pages << np.uint64(PAGE_SHIFT),
                "pfn": a.array(frames, mask=frames == NO_FRAME),
            }
        )

    def close(self) -> None:
        """Joins the parts of the side list. Errors: RedirtyError."""
        self._bitmap.close()
        self._flush()
        self._parts.close(self._table([]))


def bitmap_rows(number: int, frames: PageSet) -> Iterator[tuple[object, ...]]:
    """A row for each 512 frames that have a dirty one among them. The bitmap is a hex number, whose
    bit i stands for frame first_pfn + i."""
    text = frames.words[:, ::-1].astype(">u8").tobytes().hex()
    counts = np.bitwise_count(frames.words).sum(axis=1, dtype=np.int64).tolist()
    size = 2 * _REGION_BYTES
    firsts = (frames.keys * np.uint64(PAGES_PER_REGION)).tolist()
    for i, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        yield (number, first, count, "0x" + text[i * size : (i + 1) * size])
