"""Tells which pages are met for the first time when the memory of one process after the other is read."""

from __future__ import annotations

import numpy as np
from redirty.collector.linux.page_frames import NO_FRAME, frames_of, zero_frames
from redirty.collector.linux.pagemap import ENTRY_FILE, ENTRY_PRESENT
from redirty.collector.pageset import PAGES_PER_REGION, U64, Bools


class SeenPages:
    """The pages of a target that were seen so far, in one process or another."""

    def __init__(self) -> None:
        self._zeros = zero_frames()
        self._files: dict[int, dict[int, int]] = {}  # by file and region, a bit for each page

    def first(self, file: int) -> bool:
        """Return whether a file is met for the first time."""
        known = file in self._files
        self._files.setdefault(file, {})
        return not known

    def own(self, entries: U64, here: Bools) -> Bools:
        """Return which pages of a private mapping are the process's own."""
        frames = frames_of(entries, self._zeros)
        is_zero = ((entries & ENTRY_PRESENT) != 0) & (frames == NO_FRAME)
        found: Bools = here & ((entries & ENTRY_FILE) == 0) & ~is_zero
        return found

    def of_file(self, file: int, first: int, here: Bools) -> Bools:
        """Return which pages of a file, from page `first` of it on, are new, and remember them."""
        known, found = self._files[file], np.zeros(len(here), np.bool_)
        at = 0
        while at < len(here):
            region, skip = divmod(first + at, PAGES_PER_REGION)
            count = min(PAGES_PER_REGION - skip, len(here) - at)
            bits = np.packbits(here[at : at + count], bitorder="little").tobytes()
            new = int.from_bytes(bits, "little") << skip & ~known.get(region, 0)
            known[region] = known.get(region, 0) | new
            bits = (new >> skip).to_bytes(PAGES_PER_REGION // 8, "little")
            flags = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[:count]
            found[at : at + count] = flags.astype(np.bool_)
            at += count
        return found
