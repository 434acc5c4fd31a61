"""One address space of the target, from its first arm to its end."""

from __future__ import annotations

import logging
import time

from redirty.collector.arming.base import Armed
from redirty.collector.arming.soft_dirty import SoftDirtyArmed
from redirty.collector.errors import GoneError
from redirty.collector.linux import io_uring
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import Mappings, MapsFile
from redirty.collector.linux.process import Process
from redirty.collector.pageset import PageSet, empty, pages_in_covered_regions
from redirty.collector.target.targets import TargetSet

log = logging.getLogger(__name__)

# A walk over all present pages costs about 15 ns each. Up to these many are looked at in every
# round; of more, this many a round in turn. In between, pages that were unmapped count as present.
PRESENCE_PAGES_A_ROUND = 131072
_MOVED_LEAST = 64  # of a region's 512: fewer may have been written by others, unseen
_PINNED_EVERY_S = 1.0  # looking costs some 30 us


class AddressSpace:
    """number: the kernel side's name for it. armed: None when it is traced by its faults alone.
    target: says which of its mappings belong to it."""

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
        self.present = empty()  # when the round began
        self._next_present = empty()
        self._cursor = 0
        self._armed_before = False
        self._pinned_due = 0.0
        self.pinned_kib = 0  # the most seen so far
        self.unarmed = 0  # likewise, of mappings
        self.moved_pages = 0  # in all rounds, pages that look written since they were moved
        self.gone = False

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    def look(self, *, still: bool = False) -> bool:
        """Reads mappings and presence, just before an arm. False when this memory is gone. still: no thread
        of it runs, and it waits for this: what was present at the arm before has to do."""
        mappings = self.maps.read()
        if mappings is None or not mappings.items:
            self.gone = True
            return False
        self.mappings = self._target.part(mappings)
        if still:
            self._next_present = self.present
            return True
        if time.monotonic() >= self._pinned_due:
            self.look_at_pinned()
        try:
            self._look_at_presence()
        except GoneError:
            self.gone = True
            return False
        return True

    def look_at_pinned(self) -> None:
        """Memory that is pinned can be written unseen: how much of it there is has to be told."""
        self._pinned_due = time.monotonic() + _PINNED_EVERY_S
        # From 7.x on the kernel counts no buffers of io_uring, where its user may pin without limit.
        kib = max(pm.pinned_kib(self.pid), io_uring.registered_kib(self.pid, self.mappings))
        self.pinned_kib = max(self.pinned_kib, kib)

    def _look_at_presence(self) -> None:
        """Presence for the round to come: the pages there now, and what settle() adds."""
        if self.armed is None:
            return
        if len(self.present) <= 2 * PRESENCE_PAGES_A_ROUND:
            self._next_present = self._present(self.armed, 0, 1 << 52)
            return
        first, last = self._slice()
        fresh = self._present(self.armed, first, last)
        keys = self.present.keys
        keep = (keys < first >> 9) | (keys >= last >> 9)
        kept = PageSet(keys[keep], self.present.words[keep])
        self._next_present = kept | fresh

    def _present(self, armed: Armed, first: int, last: int) -> PageSet:
        if not self._target.partial:
            return armed.present(self.mappings, first, last)
        found = empty()
        # between them lies what does not belong to the target
        for start, end in zip(
            self.mappings.starts.tolist(), self.mappings.ends.tolist(), strict=True
        ):
            a, b = max(first, start), min(last, end)
            if a < b:
                found = found | armed.present(self.mappings, a, b)
        return found

    def _slice(self) -> tuple[int, int]:
        """Page numbers [first, last) of the next slice, in whole regions of 2 MiB."""
        keys = self.present.keys
        regions = PRESENCE_PAGES_A_ROUND // 512
        at = int(keys.searchsorted(self._cursor))
        if at >= len(keys):
            at = 0
        first = 0 if at == 0 else int(keys[at])
        end = at + regions
        last = int(keys[end]) if end < len(keys) else 1 << 43
        self._cursor = last
        return first << 9, last << 9

    def arm(self) -> PageSet:
        """Write-protects; the candidates for pages written in the round that ends."""
        if self.armed is None:
            return empty()
        try:
            found = self.armed.arm(self.mappings, self._next_present)
        except GoneError:
            self.gone = True
            return empty()
        self.unarmed = max(self.unarmed, self.armed.unarmed)
        return found

    def doubt(self) -> PageSet:
        """More candidates, after an arm during which the log may lack a write."""
        if self.armed is None or self.gone:
            return empty()
        try:
            return self.armed.doubt(self.mappings)
        except GoneError:
            self.gone = True
            return empty()

    def settle(self, log_pages: PageSet, candidates: PageSet) -> PageSet:
        """After the drain: pages that were written but not logged. Also brings the presence for
        the next round up to the arm."""
        if self.armed is None or self.gone:
            return empty()
        unlogged = candidates - log_pages
        appeared = log_pages - self._next_present
        try:
            written, present = self.armed.settle(unlogged | appeared, self.mappings)
        except GoneError:
            self.gone = True
            return empty()
        before, self.present = self.present, self._next_present | present
        self._next_present = empty()
        if not self._armed_before:
            # Nothing was protected before, so the page tables tell nothing of writes yet: all
            # that is there (what a child inherited, say) is present, and was not "missed".
            self._armed_before = True
            return empty()
        missed = written & unlogged
        if isinstance(self.armed, SoftDirtyArmed):
            # mremap marks all that it moves, also when page tables are relocated.
            self.moved_pages += pages_in_covered_regions(missed, before - log_pages, _MOVED_LEAST)
        return missed

    def close(self) -> None:
        """Lets go of the process; its memory is unprotected from then on."""
        if self.armed is not None:
            self.armed.close()
        self.maps.close()
        self.process.close()
