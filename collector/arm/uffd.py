"""Arming with userfaultfd's asynchronous write protection (Linux 6.7).

The kernel lifts the protection of a page by itself at its first write, so nobody waits for the
collector, and a scan tells which pages are protected no more. The descriptor is the
collector's alone: when it is closed, by whatever end, the protection is gone.

Sources: Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst, fs/userfaultfd.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from redirty.collector.arm import pagemap as pm
from redirty.collector.arm.base import ArmError, GoneError
from redirty.collector.bitmap import (
    PAGE_SHIFT,
    REGION_SHIFT,
    PageSet,
    count_in,
    empty,
    from_ranges,
    full_runs,
    spans,
)
from redirty.collector.errors import why
from redirty.collector.host.mappings import Mapping, Mappings

_API, _REGISTER, _WRITE_PROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_API_VERSION = 0xAA
_FEATURE_WP_UNPOPULATED, _FEATURE_WP_ASYNC = 1 << 13, 1 << 15
_MODE_WP = 2

# A page of a shared mapping that was only read looks written unless it was protected before it
# was there, which takes page tables for the whole mapping: 0.2 % of its size. Up to these many
# bytes that is worth it; pages first read in larger ones count as new.
_PREPARE_EACH, _PREPARE_ALL = 256 << 20, 1 << 30

# A mapping that is refused is tried again at each of so many arms, then with longer and longer pauses.
_SURE_TRIES, _LONGEST_PAUSE, _NEVER = 4, 64, 1 << 62

# Runs of full regions (2 MiB each) worth a system call of their own, and how many of them.
_LEAST_RUN, _MOST_RUNS = 16, 256

_SWAP_TYPE_MARKER = np.uint64(31)  # include/linux/swapops.h: the last of the 32 swap types


def initialise(descriptor: int) -> None:
    """Asks for asynchronous write protection.

    Errors: ArmError on a kernel without it.
    """
    features = _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED
    try:
        fcntl.ioctl(descriptor, _API, struct.pack("QQQ", _API_VERSION, features, 0))
    except OSError as e:
        if e.errno == errno.EINVAL:
            raise ArmError(
                "this kernel's userfaultfd has no asynchronous write protection (Linux 6.7 has)",
                e.errno,
            ) from None
        raise ArmError(f"userfaultfd: {why(e)}", e.errno or 0) from None


def adjacent(mappings: Sequence[Mapping]) -> list[Sequence[Mapping]]:
    """Mappings, ascending, in runs without a gap between them."""
    cuts = [i for i, (a, b) in enumerate(pairwise(mappings), 1) if a.end != b.start]
    bounds = [0, *cuts, len(mappings)] if mappings else []
    return [mappings[a:b] for a, b in pairwise(bounds)]


class UffdArmed:
    """An address space armed through its userfaultfd. Takes the descriptor over."""

    def __init__(self, pid: int, descriptor: int, stopped_s: float) -> None:
        self.pid = pid
        self.stopped_s = stopped_s
        self.unarmed = 0
        self._fd = descriptor
        self._known: Mappings | None = None
        self._registered: frozenset[Mapping] = frozenset()
        self._arms = 0
        self._refused: dict[Mapping, tuple[int, int]] = {}  # how often, and from which arm on again
        self._unchanged: frozenset[Mapping] = frozenset()  # since the arm before
        self._prepared: set[Mapping] = set()
        self._room = _PREPARE_ALL
        self._found = empty()  # written before the mapping was under the descriptor
        try:
            initialise(descriptor)
            self._pagemap = pm.Pagemap(pid)
        except ArmError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            raise GoneError from None

    # ---- registration ----

    def _register(self, mappings: Mappings) -> None:
        """Puts what is new in the list of mappings under the descriptor."""
        self._arms += 1
        # Mapped anew at the same place with the same name: the list looks the same.
        hits = np.flatnonzero(count_in(self._strays(mappings), mappings.starts, mappings.ends))
        if mappings is self._known and not len(hits):
            return
        anew = {mappings.items[i] for i in hits.tolist()}
        new = [m for m in mappings.items if m not in self._registered or m in anew]
        # What was split, grown or unmapped since gives back its share.
        self._prepared.intersection_update(mappings.items)
        self._prepared.difference_update(new)
        self._room = _PREPARE_ALL - sum(m.end - m.start for m in self._prepared)
        due = [m for m in new if self._refused.get(m, (0, 0))[1] <= self._arms]
        for run in adjacent(due):
            self._register_run(run)
        self._prepare([m for m in due if m.perms[3] == "s" and m not in self._refused])
        self._known = mappings
        self._registered = frozenset(mappings.items)
        self._refused = {m: r for m, r in self._refused.items() if m in self._registered}
        self.unarmed = sum(m.perms[1] == "w" for m in self._refused)

    def _strays(self, mappings: Mappings) -> PageSet:
        """Pages present in mappings that are not under the descriptor. The kernel passes over
        those that are, so this costs no walk over their pages."""
        regions = self._scan(
            *(0, mappings.items[-1].end),
            mask=pm.WPALLOWED,
            inverted=pm.WPALLOWED,
            anyof=pm.PRESENT | pm.SWAPPED,
            returned=pm.PRESENT,
        )
        # What was refused for being gone for a moment comes back as it was, in a list that looks
        # the same: its pages are strays as soon as it is to be tried again.
        refused = sorted((m.start, m.end) for m, r in self._refused.items() if r[1] > self._arms)
        pages = pm.to_pages(regions)
        if refused and len(pages.keys):
            bounds = np.array(refused, np.uint64) >> np.uint64(PAGE_SHIFT)
            pages = pages - from_ranges(bounds[:, 0], bounds[:, 1])
        return pages

    def _register_run(self, run: Sequence[Mapping]) -> None:
        """Mappings with nothing between them, by one call: a process may have 65,530 of them. The
        kernel takes all or none, so a run that it refuses is tried in halves."""
        mapping, last = run[0], run[-1]
        length = last.end - mapping.start
        try:
            fcntl.ioctl(
                self._fd, _REGISTER, struct.pack("QQQQ", mapping.start, length, _MODE_WP, 0)
            )
        except OSError as e:
            if len(run) > 1 and e.errno != errno.ESRCH:
                self._register_run(run[: len(run) // 2])
                self._register_run(run[len(run) // 2 :])
                return
            if e.errno == errno.EBUSY and self._known is None:
                raise ArmError(
                    f"cannot arm process {self.pid} with userfaultfd: its mapping at "
                    f"{mapping.start:#x} is under another userfaultfd (its own, or another "
                    "tracer's); end that, or use --arm soft-dirty on a kernel that has it",
                    errno.EBUSY,
                ) from None
            if e.errno == errno.ESRCH or (e.errno == errno.ENOMEM and self._memory_gone()):
                raise GoneError from None
            self._refuse(mapping, e.errno)
            return
        if self._refused:
            for mapping in run:
                self._refused.pop(mapping, None)

    def _refuse(self, mapping: Mapping, code: int | None) -> None:
        """Gone meanwhile, or another's for now: tried again as soon as a page is there, less and less
        often, for it may be a kind that is never taken (MAP_DROPPABLE)."""
        tries = self._refused.get(mapping, (0, 0))[0] + 1
        pause = 1 if tries <= _SURE_TRIES else min(1 << (tries - _SURE_TRIES), _LONGEST_PAUSE)
        again = self._arms + pause
        # A shared mapping of a file opened for reading only is refused, and not written, for good.
        # (For others it means that something else lies there for the moment.)
        if code == errno.EPERM and mapping.perms[3] == "s" and mapping.perms[1] != "w":
            again = _NEVER
        self._refused[mapping] = (tries, again)

    def _prepare(self, shared: Sequence[Mapping]) -> None:
        """Protects shared mappings, ascending, wherever no page is yet, as far as there is room."""
        chosen = []
        for mapping in shared:
            length = mapping.end - mapping.start
            if length <= min(_PREPARE_EACH, self._room):
                chosen.append(mapping)
                self._room -= length
        self._prepared.update(chosen)
        # By a scan, which tells in the same step what was written until now: a mapping may have
        # been made, moved or changed, and written, in the round that ends here.
        found = [self._protect_all(run[0].start, run[-1].end) for run in adjacent(chosen)]
        if found:
            self._found = self._found | pm.to_pages(*found)

    def _memory_gone(self) -> bool:
        """Whether the descriptor's memory is gone, by an exec before the rest was opened, say: to
        put something under it is then ENOMEM, to protect something ESRCH."""
        try:
            fcntl.ioctl(self._fd, _WRITE_PROTECT, struct.pack("QQQ", 0, 1 << PAGE_SHIFT, 0))
        except OSError as e:
            return e.errno == errno.ESRCH
        return False

    # ---- the round ----

    def _scan(
        self,
        start: int,
        end: int,
        *,
        mask: int,
        returned: int,
        anyof: int = 0,
        flags: int = 0,
        inverted: int = 0,
    ) -> pm.Regions:
        try:
            return self._pagemap.scan(
                start,
                end,
                mask=mask,
                anyof=anyof,
                returned=returned,
                flags=flags,
                inverted=inverted,
            )
        except OSError as e:
            if e.errno in (errno.ESRCH, errno.EIO):
                raise GoneError from None
            raise ArmError(f"cannot scan the page tables of process {self.pid}: {why(e)}") from None

    def arm(self, mappings: Mappings, present: PageSet | None = None) -> PageSet:
        """See Armed."""
        before = self._registered
        self._register(mappings)
        same = before is self._registered
        self._unchanged = before if same else before & self._registered
        found, self._found = self._found, empty()
        return found | self.scan_and_protect(mappings, present)

    def scan_and_protect(self, mappings: Mappings, present: PageSet | None = None) -> PageSet:
        """The one step that matters: pages not protected, now protected.

        Where regions are full the kernel's quick way is taken (2 ns a page). It also marks places
        where no page is, and would make page tables for all that a program has only reserved, so
        everywhere else the pages that are there are asked for (15 ns each).
        """
        runs = full_runs(present, _LEAST_RUN, _MOST_RUNS) if present is not None else []
        found = []
        at = 0
        for first, last in runs:
            if last << REGION_SHIFT > mappings.items[-1].end:
                break  # unmapped since it was looked at
            found.append(self._protect_present(at, first << REGION_SHIFT))
            at = last << REGION_SHIFT
            found.append(self._protect_all(first << REGION_SHIFT, at))
        found.append(self._protect_present(at, max(at, mappings.items[-1].end)))
        return pm.to_pages(*found)

    def doubt(self, mappings: Mappings) -> PageSet:
        """See Armed: one step."""
        return empty()

    def _protect_present(self, start: int, end: int) -> pm.Regions:
        return self._scan(
            start,
            end,
            mask=pm.WRITTEN,
            anyof=pm.PRESENT | pm.SWAPPED,
            returned=pm.WRITTEN,
            flags=pm.WP_MATCHING,
        )

    def _protect_all(self, start: int, end: int) -> pm.Regions:
        return self._scan(start, end, mask=pm.WRITTEN, returned=pm.WRITTEN, flags=pm.WP_MATCHING)

    def settle(self, candidates: PageSet, mappings: Mappings) -> tuple[PageSet, PageSet]:
        """See Armed."""
        if len(candidates.keys) == 0:
            return empty(), empty()
        returned = pm.PRESENT | pm.SWAPPED | pm.PFNZERO | pm.FILE
        # A stack may lie in the last, broken region of all addresses: past it is EFAULT.
        end = mappings.items[-1].end
        found = [
            self._scan(
                first << REGION_SHIFT,
                min(last << REGION_SHIFT, end),
                mask=0,
                anyof=pm.PRESENT | pm.SWAPPED,
                returned=returned,
            )
            for first, last in spans(candidates)
            if first << REGION_SHIFT < end
        ]
        if not found:
            return empty(), empty()
        regions = np.concatenate(found)
        categories = regions["categories"]
        real = pm.to_pages(regions[(categories & pm.SWAPPED) == 0])
        swapped = pm.to_pages(regions[(categories & pm.SWAPPED) != 0]) & candidates
        present = (real & candidates) | self._without_markers(swapped)
        zero = pm.to_pages(regions[(categories & pm.PFNZERO) != 0])
        cache = pm.to_pages(regions[(categories & pm.FILE) != 0])
        # The page cache seen through a private mapping was read, never written through it: a
        # write would have made it anonymous.
        unwritten = zero | (cache & mappings.pages_of(private_file=True))
        # What was read-only and stayed so; what was made read-only was maybe written before.
        unwritten = unwritten | mappings.pages_of(read_only_shared=self._unchanged)
        return present - unwritten, present

    def present(self, mappings: Mappings, first: int, last: int) -> PageSet:
        """See Armed."""
        end = min(last << PAGE_SHIFT, mappings.items[-1].end)
        start = first << PAGE_SHIFT
        if start >= end:
            return empty()
        swap = pm.swapped_kib(self.pid)
        kinds = pm.PRESENT | (pm.SWAPPED if swap else 0)
        regions = self._scan(start, end, mask=0, anyof=kinds, returned=kinds)
        if not swap:
            return pm.to_pages(regions)
        out = (regions["categories"] & pm.SWAPPED) != 0
        return pm.to_pages(regions[~out]) | self._without_markers(pm.to_pages(regions[out]))

    def _without_markers(self, pages: PageSet) -> PageSet:
        """Places that are swapped out for real: the kernel keeps its note "protected, no page
        here" in the form of a swap entry, too."""
        if len(pages.keys) == 0:
            return pages
        real = []
        for first, last in spans(pages):
            entries = self._pagemap.entries(first << 9, (last - first) << 9)
            swapped = (entries & pm.ENTRY_SWAPPED) != 0
            marker = (entries & np.uint64(31)) == _SWAP_TYPE_MARKER
            real.append(pm.pages_where(first << 9, swapped & ~marker))
        total = real[0]
        for more in real[1:]:
            total = total | more
        return total & pages

    def close(self) -> None:
        """See Armed. Closing the last copy of the descriptor takes the protection off."""
        if self._fd >= 0:
            os.close(self._fd)
            self._pagemap.close()
            self._fd = -1
