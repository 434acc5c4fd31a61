"""An address space of the target, from its first arm to its end."""

from __future__ import annotations

import logging
import time

from redirty.collector.arming.base import Armed, Presence
from redirty.collector.arming.protection import Protection
from redirty.collector.errors import GoneError
from redirty.collector.linux import io_uring
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import Mappings, MapsFile
from redirty.collector.linux.process import Process
from redirty.collector.pageset import (
    PAGES_PER_REGION,
    PageSet,
    empty,
    pages_in_covered_regions,
)
from redirty.collector.target.targets import TargetSet

log = logging.getLogger(__name__)

# A walk over all present pages costs about 15 ns a page. Up to this number all are walked in every
# round; beyond it, this number per round in turn. In between, unmapped pages still count as present.
PRESENCE_PAGES_A_ROUND = 131072
_MIN_MOVED_PAGES = (
    64  # of a region's 512: fewer may have been written by others without being logged
)
_PINNED_EVERY_S = 1.0  # reading it costs some 30 us
_LAST_PAGE = 1 << 52
_LAST_REGION = 1 << 43


class AddressSpace:
    """An address space, armed round by round.

    Attributes:
        number: identifies it on the kernel side.
        slot: index of its statistics there; 0: shared.
        process: the process that it belongs to.
        armed: None when it is traced by its faults alone.
        maps: its /proc/PID/maps file.
        mappings: the mappings that belong to the target, as of the last refresh().
        present: pages present when the round started.
        unowned: see arming.base.Presence.
        pinned_kib: maximum of pinned memory, in KiB.
        unarmed: maximum number of mappings that could not be armed.
        moved_pages: pages, in all rounds, that looked written because they had been moved.
        gone: whether this memory no longer exists.
    """

    def __init__(
        self,
        number: int,
        slot: int,
        process: Process,
        armed: Armed | None,
        target: TargetSet,
    ) -> None:
        self.number = number
        self.slot = slot
        self.process = process
        self.armed = armed
        self._target = target
        self.maps = MapsFile(process.pid)
        self.mappings = Mappings.of(())
        self.present = empty()
        self.unowned = empty()
        self._next = Presence(empty(), empty())
        self._cursor = 0
        self._armed_before = False
        self._pinned_due = 0.0
        self.pinned_kib = 0
        self.unarmed = 0
        self.moved_pages = 0
        self.gone = False

    @property
    def pid(self) -> int:
        """The process ID."""
        return self.process.pid

    @property
    def protection(self) -> Protection | None:
        """The course of the latest arm; None before the first, and of memory that is not armed."""
        return None if self.armed is None else self.armed.protection

    def refresh(self, *, stopped: bool = False) -> bool:
        """Read mappings and presence, just before an arm. Return False when this memory is gone.

        stopped: no thread of the target runs, and the downtime includes this call: presence at the previous arm
            is used instead of reading it again.
        """
        mappings = self.maps.read()
        if mappings is None or not mappings.items:
            self.gone = True
            return False
        self.mappings = self._target.part(mappings)
        if stopped:
            self._next = Presence(self.present, self.unowned)
            return True
        if time.monotonic() >= self._pinned_due:
            self.update_pinned()
        try:
            self._update_presence()
        except GoneError:
            self.gone = True
            return False
        return True

    def update_pinned(self) -> None:
        """Update pinned_kib: writes to pinned memory are not tracked, so its size is reported."""
        self._pinned_due = time.monotonic() + _PINNED_EVERY_S
        # From 7.x on the kernel does not count io_uring's buffers where the user may pin without limit.
        kib = max(pm.pinned_kib(self.pid), io_uring.registered_kib(self.pid, self.mappings))
        self.pinned_kib = max(self.pinned_kib, kib)

    def _update_presence(self) -> None:
        """Read the presence for the next round: the pages present now; resolve() adds to them."""
        if self.armed is None:
            return
        if len(self.present) <= 2 * PRESENCE_PAGES_A_ROUND:
            self._next = self._present(self.armed, 0, _LAST_PAGE)
            return
        first, last = self._next_slice()
        fresh = self._present(self.armed, first, last)
        self._next = Presence(
            _outside(self.present, first, last) | fresh.pages,
            _outside(self.unowned, first, last) | fresh.unowned,
        )

    def _present(self, armed: Armed, first: int, last: int) -> Presence:
        if not self._target.partial:
            return armed.present(self.mappings, first, last)
        found, unowned = empty(), empty()
        # What lies between the mappings does not belong to the target.
        for start, end in zip(
            self.mappings.starts.tolist(), self.mappings.ends.tolist(), strict=True
        ):
            a, b = max(first, start), min(last, end)
            if a < b:
                part = armed.present(self.mappings, a, b)
                found, unowned = found | part.pages, unowned | part.unowned
        return Presence(found, unowned)

    def _next_slice(self) -> tuple[int, int]:
        """Return the page numbers [first, last) to walk in this round, in whole regions."""
        keys = self.present.keys
        regions = PRESENCE_PAGES_A_ROUND // PAGES_PER_REGION
        at = int(keys.searchsorted(self._cursor))
        if at >= len(keys):
            at = 0
        first = 0 if at == 0 else int(keys[at])
        end = at + regions
        last = int(keys[end]) if end < len(keys) else _LAST_REGION
        self._cursor = last
        return first << 9, last << 9

    def arm(self) -> PageSet:
        """Write-protect all pages; return candidates for pages written in the round that ends."""
        if self.armed is None:
            return empty()
        try:
            found = self.armed.arm(self.mappings, self._next.pages)
        except GoneError:
            self.gone = True
            return empty()
        self.unarmed = max(self.unarmed, self.armed.unarmed)
        return found

    def assume_dirty(self) -> PageSet:
        """Return more candidates, after an arm during which the log may have missed a write."""
        if self.armed is None or self.gone:
            return empty()
        try:
            return self.armed.assume_dirty(self.mappings)
        except GoneError:
            self.gone = True
            return empty()

    def resolve(self, log_pages: PageSet, candidates: PageSet) -> PageSet:
        """Return the missed pages, written but not logged; called after the drain.

        Also brings the presence for the next round up to date with the arm.
        """
        if self.armed is None or self.gone:
            return empty()
        unlogged = candidates - log_pages
        appeared = log_pages - self._next.pages
        try:
            written, present = self.armed.resolve(unlogged | appeared, self.mappings)
        except GoneError:
            self.gone = True
            return empty()
        before, self.present = self.present, self._next.pages | present
        self.unowned = self._next.unowned
        self._next = Presence(empty(), empty())
        if not self._armed_before:
            # Nothing was protected before, so the page tables do not show writes yet: all pages that
            # exist (such as those inherited by a child) are present, and were not "missed".
            self._armed_before = True
            return empty()
        missed = written & unlogged
        if self.armed.moved_looks_written:
            # mremap marks all pages that it moves, also when page tables are relocated.
            unlogged_before = before - log_pages
            self.moved_pages += pages_in_covered_regions(missed, unlogged_before, _MIN_MOVED_PAGES)
        return missed

    def close(self) -> None:
        """Release the process; its memory is unprotected from then on."""
        if self.armed is not None:
            self.armed.close()
        self.maps.close()
        self.process.close()


def _outside(pages: PageSet, first: int, last: int) -> PageSet:
    """Return the pages that are not among the page numbers [first, last), in whole regions."""
    keys = pages.keys
    keep = (keys < first >> 9) | (keys >= last >> 9)
    return PageSet(keys[keep], pages.words[keep])
