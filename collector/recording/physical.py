"""physical.parquet: the bitmap of dirty page frames by round; frames.parquet: the frame of each dirty page."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.folders import Folder
from redirty.collector.linux.page_frames import NO_FRAME
from redirty.collector.metrics.frame_tracking import FrameChanges, PhysicalRound
from redirty.collector.pageset import PAGE_SHIFT, U64, WORDS_PER_REGION, PageSet
from redirty.collector.recording.parquet_parts import ParquetParts, arrow

_ROWS_A_PART = 1 << 20
_PART_EVERY_S = 10.0  # what was not written yet is lost if the collector is killed
_FRAMES_A_WORD = 64


class PhysicalFiles:
    """Writes the page frames of the dirty pages of rounds.

    frames.parquet has a row only where the frame of a page has changed, so it stays short: at a round, a
    page is in the frame of its last row up to that round.
    """

    def __init__(self, folder: Folder) -> None:
        self._arrow, parquet = arrow("--physical")
        self._bitmaps = ParquetParts(folder, "physical", parquet)
        self._frames = ParquetParts(folder, "frames", parquet)
        self._dirty: list[tuple[int, PageSet]] = []
        self._moved: list[tuple[int, FrameChanges]] = []
        self._rows = 0
        self._due = time.monotonic() + _PART_EVERY_S

    def add(self, number: int, found: PhysicalRound) -> None:
        """Add a round. Raises: RedirtyError when the disk is full."""
        self._dirty.append((number, found.frames))
        self._moved += [(number, moved) for moved in found.moved]
        self._rows += sum(len(m.pages) for m in found.moved)
        self._rows += WORDS_PER_REGION * len(found.frames.keys)
        if self._rows >= _ROWS_A_PART or time.monotonic() > self._due:
            self.flush()

    def flush(self) -> None:
        """Write the collected rounds as a part.

        Raises: RedirtyError when that fails; they are kept for the next attempt.
        """
        if self._dirty:
            self._bitmaps.add(self._bitmap_table())
            self._dirty = []
        if self._moved:
            self._frames.add(self._frame_table())
            self._moved = []
        self._rows = 0
        self._due = time.monotonic() + _PART_EVERY_S

    def _bitmap_table(self) -> Any:
        words = [words_of(frames) for _, frames in self._dirty]
        counts = [len(bits) for _, bits in words]
        return self._arrow.table(
            {
                "round": _repeated([number for number, _ in self._dirty], counts),
                "first_pfn": _joined([firsts for firsts, _ in words]),
                "bits": _joined([bits for _, bits in words]),
            }
        )

    def _frame_table(self) -> Any:
        counts = [len(moved.pages) for _, moved in self._moved]
        frames = _joined([moved.frames for _, moved in self._moved])
        pages = _joined([moved.pages for _, moved in self._moved])
        return self._arrow.table(
            {
                "round": _repeated([number for number, _ in self._moved], counts),
                "pid": _repeated([moved.pid for _, moved in self._moved], counts),
                "address": pages << np.uint64(PAGE_SHIFT),
                "pfn": self._arrow.array(frames, mask=frames == NO_FRAME),
            }
        )

    def close(self) -> None:
        """Join the parts. Raises: RedirtyError when that fails."""
        self.flush()
        self._bitmaps.close(self._bitmap_table())
        self._frames.close(self._frame_table())


def words_of(frames: PageSet) -> tuple[U64, U64]:
    """Return (first frames, bits) of the 64-frame words that have a frame of the set.

    Bit i stands for first frame + i.
    """
    row, column = np.nonzero(frames.words)
    numbers = frames.keys[row] * np.uint64(WORDS_PER_REGION) + column.astype(np.uint64)
    return numbers * np.uint64(_FRAMES_A_WORD), frames.words[row, column]


def _joined(parts: list[U64]) -> U64:
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _repeated(values: list[int], counts: list[int]) -> npt.NDArray[np.int32]:
    return np.repeat(np.array(values, np.int32), counts)
