"""Registers the mappings of a process with its userfaultfd: new ones, refused ones again.

Sources: Documentation/admin-guide/mm/userfaultfd.rst, fs/userfaultfd.c.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from redirty.collector.errors import ArmError, GoneError
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, PageSet, count_in, empty, from_ranges

REGISTER, _WRITE_PROTECT = 0xC020AA00, 0xC018AA06
MODE_WP = 2

# A page of a shared mapping that was only read looks written unless its place was protected before
# the page was there, which takes page tables for the whole mapping: 0.2 % of its size. Up to this
# number of bytes that is worth it; pages first read in larger ones count as new.
_PREPARE_EACH, _PREPARE_ALL = 256 << 20, 1 << 30

# A mapping that is refused is tried again at each of this many arms, then with growing pauses (in arms).
_SURE_TRIES, _MAX_PAUSE, _NEVER = 4, 64, 1 << 62


def adjacent(mappings: Sequence[Mapping]) -> list[Sequence[Mapping]]:
    """Split mappings, ascending, into runs without gaps."""
    cuts = [i for i, (a, b) in enumerate(pairwise(mappings), 1) if a.end != b.start]
    bounds = [0, *cuts, len(mappings)] if mappings else []
    return [mappings[a:b] for a, b in pairwise(bounds)]


class Registration:
    """The mappings that are registered with a userfaultfd.

    Attributes:
        unarmed: Number of writable mappings that the kernel refuses.
        unchanged: Mappings that are the same as at the previous update.
    """

    def __init__(self, pid: int, descriptor: int, pagemap: pm.Pagemap) -> None:
        self.pid = pid
        self.unarmed = 0
        self.unchanged: frozenset[Mapping] = frozenset()
        self._fd = descriptor
        self._pagemap = pagemap
        self._known: Mappings | None = None
        self._registered: frozenset[Mapping] = frozenset()
        self._arms = 0
        # number of tries, and the arm of the next
        self._refused: dict[Mapping, tuple[int, int]] = {}
        self._prepared: set[Mapping] = set()
        self._room = _PREPARE_ALL
        self._found = empty()  # written before the mapping was registered

    def update(self, mappings: Mappings) -> PageSet:
        """Register the new mappings of a list; return their pages that were written before that.

        Raises:
            GoneError: The memory is gone.
            ArmError: At the first update, another userfaultfd has a mapping.
        """
        before = self._registered
        self._register(mappings)
        same = before is self._registered
        self.unchanged = before if same else before & self._registered
        found, self._found = self._found, empty()
        return found

    def _register(self, mappings: Mappings) -> None:
        self._arms += 1
        # Mapped anew at the same place with the same name: the list looks the same.
        hits = np.flatnonzero(count_in(self._strays(mappings), mappings.starts, mappings.ends))
        if mappings is self._known and not len(hits):
            return
        anew = {mappings.items[i] for i in hits.tolist()}
        new = [m for m in mappings.items if m not in self._registered or m in anew]
        # Mappings that were split, grown or unmapped since give back their share.
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
        """Return the pages present in mappings that are not registered.

        The kernel skips those that are, so this costs no walk over their pages.
        """
        regions = self._pagemap.scan(
            0,
            mappings.items[-1].end,
            mask=pm.WPALLOWED,
            inverted=pm.WPALLOWED,
            anyof=pm.PRESENT | pm.SWAPPED,
            returned=pm.PRESENT,
        )
        # A mapping that was refused because it was briefly absent comes back unchanged, in a list that
        # looks the same: its pages are strays as soon as it is to be tried again.
        refused = sorted((m.start, m.end) for m, r in self._refused.items() if r[1] > self._arms)
        pages = pm.to_pages(regions)
        if refused and len(pages.keys):
            bounds = np.array(refused, np.uint64) >> np.uint64(PAGE_SHIFT)
            pages = pages - from_ranges(bounds[:, 0], bounds[:, 1])
        return pages

    def _register_run(self, run: Sequence[Mapping]) -> None:
        """Register adjacent mappings by one call: a process may have 65,530 of them.

        The kernel takes all or none, so a run that it refuses is tried in halves.
        """
        mapping, last = run[0], run[-1]
        length = last.end - mapping.start
        try:
            fcntl.ioctl(self._fd, REGISTER, struct.pack("QQQQ", mapping.start, length, MODE_WP, 0))
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
        """Note a mapping that was refused: unmapped meanwhile, or registered with another userfaultfd for now.

        It is tried again as soon as it has a page, less and less often, as it may be of a kind that is
        never accepted (MAP_DROPPABLE).
        """
        tries = self._refused.get(mapping, (0, 0))[0] + 1
        pause = 1 if tries <= _SURE_TRIES else min(1 << (tries - _SURE_TRIES), _MAX_PAUSE)
        again = self._arms + pause
        # A shared mapping of a file opened for reading only is refused, and not written, for good.
        # (For others it means that something else lies there at the moment.)
        if code == errno.EPERM and mapping.perms[3] == "s" and mapping.perms[1] != "w":
            again = _NEVER
        self._refused[mapping] = (tries, again)

    def _prepare(self, shared: Sequence[Mapping]) -> None:
        """Protect the places without a page in shared mappings, ascending, while there is room."""
        chosen = []
        for mapping in shared:
            length = mapping.end - mapping.start
            if length <= min(_PREPARE_EACH, self._room):
                chosen.append(mapping)
                self._room -= length
        self._prepared.update(chosen)
        # By a scan, which returns in the same step what was written until now: a mapping may have
        # been created, moved or changed, and written, in the round that ends here.
        found = [
            self._pagemap.scan(
                run[0].start,
                run[-1].end,
                mask=pm.WRITTEN,
                returned=pm.WRITTEN,
                flags=pm.WP_MATCHING,
            )
            for run in adjacent(chosen)
        ]
        if found:
            self._found = self._found | pm.to_pages(*found)

    def _memory_gone(self) -> bool:
        """Return whether the descriptor's memory is gone, say by an exec before the rest was opened.

        Registering then fails with ENOMEM, protecting with ESRCH.
        """
        try:
            fcntl.ioctl(self._fd, _WRITE_PROTECT, struct.pack("QQQ", 0, PAGE_SIZE, 0))
        except OSError as e:
            return e.errno == errno.ESRCH
        return False
