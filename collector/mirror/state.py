"""Tracks which pages the other end has and lacks, updated at each boundary between rounds.

A page is pending when it was written since it was copied, or was never copied. It remains pending until it was
sent after the arm of its round.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from redirty.collector.errors import RESOURCE_ERRNOS, GoneError, RedirtyError, why
from redirty.collector.linux.maps import Mappings
from redirty.collector.mirror.image.image import FILE, SPACE
from redirty.collector.mirror.image.process_image import PlacedMapping, PlacedProcess
from redirty.collector.mirror.missing import unmirrored
from redirty.collector.mirror.sources.file_source import FileSource
from redirty.collector.mirror.sources.files import Files
from redirty.collector.mirror.sources.source import Source
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Key, Vma, pages_of
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PageSet,
    empty,
    from_pages,
    page_numbers,
    page_runs,
    runs_of,
)
from redirty.collector.tracking.rounds import Round

log = logging.getLogger(__name__)

_ROUNDS = 3  # remembered for each source


class MirrorState:
    """The sources of a mirror, and which of their pages are pending.

    Attributes:
        spaces: address spaces by the recorder's number.
        files: files and shared memory that they map.
        suspect_files: files that processes outside the target may have written.
        untracked_spaces: numbers of spaces that may have been written untracked (not armed as a whole, or
            with pinned pages).
        saved_s: time that the last sync() saved because it did not scan unchanged address spaces; at the last
            pass it does scan them.
    """

    def __init__(
        self,
        sink: PageSink,
        *,
        scan: bool,
        mirrored: Callable[[int], Mappings | None] = lambda number: None,
    ) -> None:
        """Start with no sources.

        Args:
            sink: receives new sources, and reports of unmapped pages.
            scan: the kernel has PAGEMAP_SCAN.
            mirrored: returns which mappings of a space, by the recorder's number, are mirrored; None: all.
        """
        self._sink = sink
        self._scan = scan
        self._mirrored = mirrored
        self._numbers = itertools.count(1)
        self.spaces: dict[int, SpaceSource] = {}
        self.files = Files()
        self.suspect_files: set[Key] = set()
        self.untracked_spaces: set[int] = set()
        self.saved_s = 0.0
        self._unattributed_writes = False
        self._scan_s: dict[int, float] = {}  # how long the last scan of each space took

    def sources(self) -> list[Source]:
        """Return all sources in the order of their numbers."""
        found: list[Source] = [*self.spaces.values(), *self.files.by_key.values()]
        return sorted(found, key=lambda s: s.number)

    # ---- boundaries ----

    def sync(self, living: Mapping[int, int], result: Round | None, *, last: bool = False) -> None:
        """Update the pending pages. Has to be called after an arm.

        Args:
            living: PID by the number of its address space.
            result: the round that ended with the arm; None before the first one.
            last: the target is stopped, so everything that may have changed untracked is read again.

        Raises:
            RedirtyError: a process or a file cannot be read.
        """
        try:
            self._sync(living, result, last=last)
        except OSError as e:
            raise RedirtyError(
                f"cannot read the target: {why(e)}; the mirror was discarded"
            ) from None

    def _sync(self, living: Mapping[int, int], result: Round | None, *, last: bool) -> None:
        for number in self.spaces.keys() - living.keys():
            self._remove_space(number)
        for number, pid in living.items():
            if number not in self.spaces:
                self._add_space(number, pid)
        self.saved_s = 0.0
        for number, space in self.spaces.items():
            space.refresh(self._mirrored(number))
        self._sync_files(last=last)
        dirty = {} if result is None else {s.space: s.dirty for s in result.spaces}
        dirty_in_files = self._dirty_in_files(dirty)
        for number in list(self.spaces):
            try:
                self._update_space(
                    number, dirty.get(number, empty()), scan=last or result is None, last=last
                )
            except GoneError:
                self._remove_space(number)
        for key, file in self.files.by_key.items():
            self._update_file(file, dirty_in_files.get(key, empty()), last=last)
        if result is None:
            for source in self.sources():
                source.dirty = []

    def _add_space(self, number: int, pid: int) -> None:
        try:
            space = SpaceSource(next(self._numbers), pid, scan=self._scan)
        except OSError as e:
            if e.errno in RESOURCE_ERRNOS:
                raise
            return  # the process ended meanwhile
        self._sink.declare(space.number, SPACE)
        self.spaces[number] = space

    def _update_space(self, number: int, dirty: PageSet, *, scan: bool, last: bool) -> None:
        """Update the pending pages of an address space.

        Scanning the page tables takes 100 ns a page, so it is done only if there may be other pages than
        before. Pages that come or go otherwise (madvise, huge pages) are found when the target is stopped.

        Raises:
            GoneError: the memory is gone.
        """
        space = self.spaces[number]
        known = space.have | space.pending
        unchanged = space.vmas == space.previous_vmas and len(dirty - known) == 0
        if unchanged and not scan:
            self.saved_s += self._scan_s.get(number, 0.0)
            current = known
        else:
            started = time.monotonic()
            current = space.current_pages()
            self._scan_s[number] = time.monotonic() - started
        if last and number in self.untracked_spaces:
            dirty = current
        elif last:
            dirty = dirty | space.direct_pages()
        self._update(space, current, dirty)

    def _remove_space(self, number: int) -> None:
        space = self.spaces.pop(number)
        self._scan_s.pop(number, None)
        unsure = space.sent.maybe_sent(page_numbers(space.pending))
        starts, ends = page_runs(space.have | from_pages(unsure))
        self._sink.zero(space.number, starts, ends - starts)
        space.close()

    def _sync_files(self, *, last: bool) -> None:
        self.files.sync(self.spaces.values(), self._numbers, last=last)
        for file in self.files.by_key.values():
            if not file.declared:
                self._sink.declare(file.number, FILE)
                file.declared = True

    def _dirty_in_files(self, dirty: Mapping[int, PageSet]) -> dict[Key, PageSet]:
        """Return the dirty pages of each file, given those of each address space."""
        found: dict[Key, PageSet] = {}
        for number, pages in dirty.items():
            space = self.spaces.get(number)
            if space is None:  # created and gone within the round
                self._unattributed_writes |= len(pages) > 0
                continue
            in_files, unknown = self.files.dirty_pages(space, page_numbers(pages))
            self._unattributed_writes |= unknown
            for key, more in in_files.items():
                found[key] = found.get(key, empty()) | more
        return found

    def _update_file(self, file: FileSource, dirty: PageSet, *, last: bool) -> None:
        try:
            file.note_written(dirty)
            first = len(file.have.keys) == 0
            changed = last and not first and self._may_have_changed(file)
            if first or changed:
                file.remember_state()
            current = file.current_pages(fresh=last)
            if changed:
                dirty = dirty | current
        except OSError as e:
            if e.errno in RESOURCE_ERRNOS:
                raise
            log.info("cannot read %s: %s", file.path, e)
            return
        self._update(file, current, dirty)

    def _update(self, source: Source, current: PageSet, dirty: PageSet) -> None:
        """Update the pending pages, given the pages that exist now and those that were written."""
        gone = source.have - current
        # Of pages that a lost connection made pending again the other end may have older contents.
        unsure = source.sent.maybe_sent(page_numbers(source.pending - current))
        numbers = np.union1d(page_numbers(gone), unsure)
        if len(numbers):
            self._sink.zero(source.number, *runs_of(numbers))
            source.sent.mark_never_sent(numbers)
            source.have = source.have - gone
        dirty = dirty & current
        source.unread = source.unread & current
        again = source.unread - source.retried  # once more, and from then on when it is written
        source.retried = (source.retried & source.unread - dirty) | again
        new = current - source.have - source.unread
        source.pending = (source.pending & current) | dirty | again | new
        source.dirty = [dirty, *source.dirty[: _ROUNDS - 1]]

    def _may_have_changed(self, file: FileSource) -> bool:
        if file.may_have_changed() or file.key in self.suspect_files:
            return True
        return self._unattributed_writes and file.writable

    # ---- queries ----

    def left_bytes(self) -> int:
        """Return the bytes that are pending."""
        return sum(len(s.pending) for s in self.sources()) * PAGE_SIZE

    def newly_dirty_pages(self) -> int:
        """Return the number of pages that were dirty in the last round and not in the one before."""
        dirty = [s.dirty for s in self.sources() if s.dirty]
        return sum(len(d[0] - d[1]) if len(d) > 1 else len(d[0]) for d in dirty)

    def reread_bytes(self) -> int:
        """Return the bytes that are not pending, but have to be read again while the target is stopped."""
        files = self.files.by_key.values()
        pages = sum(len(f.have) for f in files if self._may_have_changed(f))
        for number, space in self.spaces.items():
            untracked = number in self.untracked_spaces
            pages += len(space.have if untracked else space.direct_pages())
        return pages * PAGE_SIZE

    def resend(self, pages: Iterable[tuple[int, PageSet]]) -> None:
        """Mark pages (source number, pages) that were sent and not acknowledged as pending again."""
        by_number = {s.number: s for s in self.sources()}
        for number, lost in pages:
            source = by_number.get(number)
            if source is not None:
                source.sent.mark_unknown(page_numbers(lost))
                source.have = source.have - lost
                source.pending = source.pending | lost

    def all_pages(self) -> list[tuple[Source, PageSet]]:
        """Return all pages that the mirror should have, for a digest.

        Raises:
            GoneError: an address space is gone.
        """
        found: list[tuple[Source, PageSet]] = []
        for source in self.sources():
            assert isinstance(source, SpaceSource | FileSource)
            found.append((source, source.current_pages()))
        return found

    def unmirrored(self) -> list[dict[str, Any]]:
        """Return what the mirror lacks, see missing.unmirrored()."""
        return unmirrored(self.spaces.values(), self.files)

    def place(self, notes: Callable[[SpaceSource], bytes]) -> Sequence[PlacedProcess]:
        """Return the processes of the mirror, with the notes that `notes` makes of each."""
        return [self._place(space, notes(space)) for space in self.spaces.values()]

    def _place(self, space: SpaceSource, notes: bytes) -> PlacedProcess:
        mappings = tuple(self._place_mapping(space, vma) for vma in space.vmas)
        private = [
            vma
            for vma in space.vmas
            if not vma.shared and self.files.file_of(space, vma) is not None
        ]
        zero = space.sent.zero_among(space.have & pages_of(private))
        runs = zip(*(a.tolist() for a in runs_of(zero)), strict=True)
        return PlacedProcess(space.pid, space.number, mappings, notes, tuple(runs))

    def _place_mapping(self, space: SpaceSource, vma: Vma) -> PlacedMapping:
        file = self.files.file_of(space, vma)
        return PlacedMapping(
            first=vma.start >> PAGE_SHIFT,
            end=vma.end >> PAGE_SHIFT,
            perms=vma.perms,
            path=vma.path,
            source=None if file is None else file.number,
            offset=0 if file is None else vma.pages_of_file()[0],
        )

    def close(self) -> None:
        """Release all address spaces and files."""
        for space in self.spaces.values():
            space.close()
        self.files.close()
