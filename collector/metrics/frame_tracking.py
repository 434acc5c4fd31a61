"""Locates the dirty pages of a target in page frames, round after round."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.errors import require_resources
from redirty.collector.linux.page_frames import (
    NO_FRAME,
    Entries,
    Ranges,
    entries_of,
    frames_of,
    zero_frames,
)
from redirty.collector.linux.pagemap import Pagemap
from redirty.collector.pageset import (
    U64,
    PageSet,
    from_pages,
    page_numbers,
)
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.tracking.rounds import Round


class _Watched:
    """An address space with its pagemap and the last known frames of its pages."""

    def __init__(self, space: AddressSpace) -> None:
        self.last = LastFrames()
        self._pagemap: Pagemap | None = None
        try:
            opened = Pagemap(space.pid, regions=1)
        except OSError as e:
            require_resources(e, f"cannot locate the pages of process {space.pid}")
            return
        # The PID may have been reused by now, but not while this memory exists.
        if space.maps.there():
            self._pagemap = opened
        else:
            opened.close()

    def read(self, first_page: int, into: U64) -> None:
        """Read raw pagemap entries; leave the buffer unchanged when the memory is gone."""
        if self._pagemap is not None:
            with contextlib.suppress(OSError):
                os.preadv(self._pagemap.fd, [into.data], first_page * into.itemsize)

    def close(self) -> None:
        """Release the process's memory."""
        if self._pagemap is not None:
            self._pagemap.close()


class FrameTracker:
    """Locates dirty pages. Use: locate() right after each round, close() at the end.

    Frames are read from the page tables after the round: a page that was swapped out or copied since its
    write is reported with its frame at that time.
    """

    def __init__(self) -> None:
        self._zeros = zero_frames()
        self._watched: dict[int, _Watched] = {}

    def locate(self, result: Round, spaces: Mapping[int, AddressSpace]) -> PhysicalRound:
        """Locate the dirty pages of a round. spaces: those that still exist, by number."""
        for number in self._watched.keys() - spaces.keys():
            self._watched.pop(number).close()
        parts = []
        for space in result.spaces:
            live = spaces.get(space.space)
            if live is None or live.gone:
                parts.append((space.pid, LastFrames(), *frames_for(None, space.dirty, ())))
                continue
            if space.space not in self._watched:
                self._watched[space.space] = _Watched(live)
            watched = self._watched[space.space]
            frames = frames_for(watched.read, space.dirty, self._zeros)
            parts.append((space.pid, watched.last, *frames))
        return add_up(parts)

    def close(self) -> None:
        """Release all processes."""
        for watched in self._watched.values():
            watched.close()
        self._watched = {}


class LastFrames:
    """The last known frame of each page of one address space: 16 bytes a page."""

    def __init__(self) -> None:
        self._pages = np.empty(0, np.uint64)  # ascending
        self._frames = np.empty(0, np.uint64)

    def update(self, pages: U64, frames: U64) -> npt.NDArray[np.bool_]:
        """Update the frames of some pages (ascending and unique).

        Return (n,) which of them are new, or were in another frame.
        """
        at = np.searchsorted(self._pages, pages)
        known = np.zeros(len(pages), np.bool_)
        inside = at < len(self._pages)
        known[inside] = self._pages[at[inside]] == pages[inside]
        changed = ~known
        changed[known] = self._frames[at[known]] != frames[known]
        self._frames[at[known]] = frames[known]
        if not bool(known.all()):
            self._pages = np.insert(self._pages, at[~known], pages[~known])
            self._frames = np.insert(self._frames, at[~known], frames[~known])
        return changed


@dataclass(frozen=True, eq=False)
class FrameChanges:
    """Page numbers of a process, ascending, and the frame (or NO_FRAME) that each of them is in now."""

    pid: int
    pages: U64
    frames: U64


@dataclass(frozen=True, eq=False)
class PhysicalRound:
    """The page frames of the dirty pages of one round.

    Attributes:
        frames: set of the frames, each once however often it is mapped.
        frameless: number of dirty pages in no frame: swapped out, unmapped, or of a process that ended.
        moved: pages whose frame was not known before, or has changed.
    """

    frames: PageSet
    frameless: int
    moved: tuple[FrameChanges, ...]


def add_up(parts: list[tuple[int, LastFrames, U64, U64]]) -> PhysicalRound:
    """Combine (pid, last known frames, page numbers, frames) of every address space."""
    moved = []
    for pid, last, pages, frames in parts:
        changed = last.update(pages, frames)
        if changed.any():
            moved.append(FrameChanges(pid, pages[changed], frames[changed]))
    every = np.concatenate([np.empty(0, np.uint64)] + [frames for *_, frames in parts])
    real = every[every != NO_FRAME]
    return PhysicalRound(from_pages(real), len(every) - len(real), tuple(moved))


def frames_for(read: Entries | None, dirty: PageSet, zeros: Ranges) -> tuple[U64, U64]:
    """Return (page numbers, frames) of a set. read: None when the memory is gone."""
    pages = page_numbers(dirty)
    if read is None or len(pages) == 0:
        return pages, np.full(len(pages), NO_FRAME, np.uint64)
    return pages, frames_of(entries_of(read, dirty), zeros)
