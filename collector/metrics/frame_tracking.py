"""Follows the dirty pages of a target to the frames they lie in, round after round."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from redirty.collector.linux.page_frames import (
    LastFrames,
    PhysicalRound,
    add_up,
    frames_for,
    zero_frames,
)
from redirty.collector.linux.pagemap import Pagemap
from redirty.collector.pageset import U64
from redirty.collector.tracking.address_space import Space
from redirty.collector.tracking.rounds import Round


class _Watched:
    """One address space: its pagemap, and where its pages were last seen."""

    def __init__(self, space: Space) -> None:
        self.last = LastFrames()
        self._pagemap: Pagemap | None = None
        try:
            opened = Pagemap(space.pid, regions=1)
        except OSError:
            return
        # The number may stand for other memory by now; not while the old one is still there.
        if space.maps.there():
            self._pagemap = opened
        else:
            opened.close()

    def read(self, first_page: int, into: U64) -> None:
        """Raw entries; nothing when the memory is gone."""
        if self._pagemap is not None:
            with contextlib.suppress(OSError):
                os.preadv(self._pagemap.fd, [into.data], first_page * into.itemsize)

    def close(self) -> None:
        """Lets go of the process's memory."""
        if self._pagemap is not None:
            self._pagemap.close()


class Physical:
    """Use: look() right after each round, close() at the end.

    Pages lie where the page tables say after the round: one that was swapped out or copied
    since its write is told as it is then.
    """

    def __init__(self) -> None:
        self._zeros = zero_frames()
        self._watched: dict[int, _Watched] = {}

    def look(self, result: Round, spaces: Mapping[int, Space]) -> PhysicalRound:
        """Where the dirty pages of a round lie. spaces: those that still are, by number."""
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
        """Lets go of all processes."""
        for watched in self._watched.values():
            watched.close()
        self._watched = {}
