"""Arming with the soft-dirty bit: writing 4 to /proc/PID/clear_refs write-protects every page, and
the kernel sets bit 55 of a page's pagemap entry when it is written again.

Reading and clearing are two steps. A write between them loses its bit, but not its fault: the page
was protected, so the write-fault log has it, or the reading found it dirty already. If the kernel
skipped the logging programs meanwhile, every page is assumed to be written (assume_dirty).
Source: Documentation/admin-guide/mm/soft-dirty.rst.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from redirty.collector.arming.base import Part, Presence, whole
from redirty.collector.arming.protection import Protection
from redirty.collector.errors import ArmError, GoneError, why
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux import procfs
from redirty.collector.linux.maps import Mapping, Mappings, MapsFile, appeared
from redirty.collector.linux.page_frames import zero_page_frame
from redirty.collector.linux.smaps import starts_with_flag
from redirty.collector.pageset import PAGE_SHIFT, U64, Bools, PageSet, drop_empty, empty

_CHUNK_PAGES = 1 << 20


class HugetlbMappings:
    """Finds the hugetlb mappings of a process.

    The kernel keeps no soft-dirty bits for those and does not protect them, so that all their pages
    have to count as written.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: Mappings | None = None
        self._starts: frozenset[int] = frozenset()

    def starts(self, mappings: Mappings) -> frozenset[int]:
        """Return the start addresses of hugetlb mappings."""
        if not pm.hugetlb_kib(self._pid):
            return frozenset()
        if mappings is not self._known:
            self._starts, self._known = starts_with_flag(self._pid, b"ht"), mappings
        return self._starts


class SoftDirtyArmed:
    """An address space armed through its soft-dirty bits. The target is not stopped for it.

    Raises:
        ArmError: The process may not be armed.
        GoneError: The process is gone.
    """

    stopped_s = 0.0
    unarmed = 0
    one_step = False
    moved_looks_written = True

    def __init__(self, pid: int, part: Part = whole) -> None:
        """Open a process; part selects the mappings that matter, though all are armed."""
        self.pid = pid
        self._part = part
        try:
            self._pagemap = pm.Pagemap(pid, regions=1)
            self._maps = MapsFile(pid)
            self._clear_refs = self._open_clear_refs()
        except FileNotFoundError:
            raise GoneError from None
        except OSError as e:
            raise ArmError(
                f"cannot arm process {pid} with soft-dirty bits: {why(e)}", e.errno or 0
            ) from None
        self.protection: Protection | None = None
        self._last_entries: tuple[PageSet, PageSet] = (empty(), empty())
        self._huge = HugetlbMappings(pid)
        self._huge_starts: frozenset[int] = frozenset()
        self._unread = self._now = Mappings.of(())
        self._known: Mappings | None = None
        self._before: frozenset[Mapping] = frozenset()  # at the previous arm

    def arm(self, mappings: Mappings, present: PageSet | None = None) -> PageSet:
        """Read, then clear all soft-dirty bits; see Armed."""
        dirty, written, here = self._read(mappings, self._soft_dirty)
        if self._unread.items:
            moved = self.present(self._unread, 0, 1 << 52).pages
            dirty, written, here = dirty | moved, written | moved, here | moved
        self._last_entries = (written, here)
        changed = mappings is not self._known
        if changed:
            self._known, self._before = mappings, frozenset(mappings.items)
        self.protection = Protection(empty() if present is None else present)
        self.protect()
        self.protection.finished()
        now = self._maps.read()
        if now is None:
            raise GoneError
        now = self._part(now)
        if changed or now is not self._now:
            # Mapped after the list was read, and its bits cleared unread: pages that mremap moved
            # there are in no log. All pages there count as written, once.
            self._unread = appeared(mappings, now)
        self._now = now
        return dirty

    def assume_dirty(self, mappings: Mappings) -> PageSet:
        """Return all pages that may have been written; see Armed."""
        dirty, written, here = self._read(mappings, self._all_present)
        self._last_entries = (self._last_entries[0] | written, self._last_entries[1] | here)
        return dirty

    def protect(self) -> None:
        """Clear all soft-dirty bits, which write-protects the pages.

        Raises:
            GoneError: The memory is gone.
            ArmError: The kernel refused.
        """
        try:
            try:
                os.pwrite(self._clear_refs, b"4\n", 0)
            except ProcessLookupError:  # the thread ended: others may live
                if not self._maps.there():
                    raise
                os.close(self._clear_refs)
                self._clear_refs = self._open_clear_refs()
                os.pwrite(self._clear_refs, b"4\n", 0)
        except (ProcessLookupError, FileNotFoundError):
            raise GoneError from None
        except OSError as e:
            raise ArmError(
                f"cannot clear the soft-dirty bits of process {self.pid}: {why(e)}"
            ) from None

    def _open_clear_refs(self) -> int:
        return os.open(f"{procfs.directory(self.pid)}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)

    def _read(
        self, mappings: Mappings, candidates_of: Callable[[Mapping, U64, Bools], Bools]
    ) -> tuple[PageSet, PageSet, PageSet]:
        """Read the page tables of all mappings.

        Args:
            mappings: The mappings.
            candidates_of: Selects the candidates among the entries of a mapping, see _soft_dirty().

        Returns:
            (candidates, those of them that can have been written, pages present or swapped out).
        """
        candidates: list[PageSet] = []
        written: list[PageSet] = []
        present: list[PageSet] = []
        self._huge_starts = self._huge.starts(mappings)
        for mapping in mappings.items:
            page, last = mapping.start >> PAGE_SHIFT, mapping.end >> PAGE_SHIFT
            while page < last:
                entries = self._entries(page, min(_CHUNK_PAGES, last - page))
                if len(entries) == 0:
                    if mapping is mappings.items[0]:
                        raise GoneError  # the file refers to memory from before an exec
                    break
                here = (entries & (pm.ENTRY_PRESENT | pm.ENTRY_SWAPPED)) != 0
                chosen = candidates_of(mapping, entries, here)
                real = self._writable(mapping, entries, chosen)
                for found, into in ((chosen, candidates), (real, written), (here, present)):
                    if found.any():
                        into.append(pm.pages_where(page, found))
                page += len(entries)
        return _joined(candidates), _joined(written), _joined(present)

    def _soft_dirty(self, mapping: Mapping, entries: U64, here: Bools) -> Bools:
        """Return (n,) which entries of a mapping are soft-dirty; for hugetlb pages, which are present."""
        if mapping.start in self._huge_starts and (
            mapping.perms[3] != "s" or mapping.perms[1] == "w"
        ):
            return here
        found: Bools = here & ((entries & pm.ENTRY_SOFT_DIRTY) != 0)
        return found

    def _all_present(self, mapping: Mapping, entries: U64, here: Bools) -> Bools:
        """Return (n,) which entries of a mapping are present, as if all were soft-dirty."""
        return here

    def _writable(self, mapping: Mapping, entries: U64, chosen: Bools) -> Bools:
        """Return (n,) which of the chosen entries of a mapping can have been written.

        A mapping is soft-dirty as a whole until the first clearing after it was created, so pages
        only read since then have the bit as well.
        """
        chosen = chosen & ~_is_zero_page(entries)
        if mapping.perms[3] != "s":
            own: Bools = chosen & ((entries & pm.ENTRY_FILE) == 0)
            return own
        if mapping.perms[1] != "w" and mapping in self._before:
            # It stayed read-only; one that was made read-only may have been written before.
            return np.zeros_like(chosen)
        return chosen

    def _entries(self, page: int, count: int) -> U64:
        try:
            return self._pagemap.entries(page, count)
        except OSError as e:
            if isinstance(e, ProcessLookupError):
                raise GoneError from None
            raise ArmError(f"cannot read the pagemap of process {self.pid}: {why(e)}") from None

    def resolve(self, candidates: PageSet, mappings: Mappings) -> tuple[PageSet, PageSet]:
        """Classify by the same reading of the page tables that found the candidates; see Armed."""
        written, present = self._last_entries
        return candidates & written, candidates & present

    def present(self, mappings: Mappings, first: int, last: int) -> Presence:
        """Read which pages are present or swapped out; see Armed."""
        found: list[PageSet] = []
        unowned: list[PageSet] = []
        for mapping in mappings.items:
            page = max(mapping.start >> PAGE_SHIFT, first)
            end = min(mapping.end >> PAGE_SHIFT, last)
            while page < end:
                entries = self._entries(page, min(_CHUNK_PAGES, end - page))
                if len(entries) == 0:
                    break
                here = (entries & (pm.ENTRY_PRESENT | pm.ENTRY_SWAPPED)) != 0
                others = here & (((entries & pm.ENTRY_FILE) != 0) | _is_zero_page(entries))
                for chosen, into in ((here, found), (others, unowned)):
                    if chosen.any():
                        into.append(pm.pages_where(page, chosen))
                page += len(entries)
        return Presence(_joined(found), _joined(unowned))

    def close(self) -> None:
        """Release the target; see Armed.

        Pages that are still protected cost their next writer one fault each.
        """
        os.close(self._clear_refs)
        self._pagemap.close()
        self._maps.close()


def _is_zero_page(entries: U64) -> Bools:
    """Return (n,) which raw entries show the kernel's zero page; none where it hides frames."""
    zero = zero_page_frame()
    if not zero:
        return np.zeros(len(entries), np.bool_)
    zero_page = pm.ENTRY_PRESENT | np.uint64(zero)
    found: Bools = (entries & (pm.ENTRY_PRESENT | pm.ENTRY_FRAME)) == zero_page
    return found


def _joined(parts: list[PageSet]) -> PageSet:
    """Return the union of sets in ascending order: adjacent ones share at most one region."""
    if not parts:
        return empty()
    keys = np.concatenate([p.keys for p in parts])
    words = np.concatenate([p.words for p in parts])
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return drop_empty(PageSet(keys[starts], np.bitwise_or.reduceat(words, starts, axis=0)))
