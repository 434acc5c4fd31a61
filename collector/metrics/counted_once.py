"""Pages of a target counted as a mirror copies them: shared memory once, whoever maps it.

A page of a shared mapping is one page of a file (or of a piece of shared memory), however many processes map
it, and however often; any other page belongs to one address space. What is gone costs a mirror nothing: own
pages of an address space that has ended do not count. The pages of a mapped file are copied from the file, all
that the mappings show, also where the page tables have none of them; and pages of files in private mappings, and
the kernel's zero page, are nobody's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import CLASSES, Mappings
from redirty.collector.metrics.mapped_files import MappedFiles, Shown, Where
from redirty.collector.pageset import (
    PageSet,
    count_in,
    empty,
    from_pages,
    matrix,
    page_numbers,
    shifted,
    within,
)
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.tracking.rounds import Round, SpaceRound

Floats = npt.NDArray[np.float64]

_FEW = 64  # mappings written; more are translated page by page
_STEPS = 64  # points of union_of()


@dataclass(frozen=True, eq=False)
class OwnPages:
    """Own pages of an address space.

    Attributes:
        dirty: written.
        present: at the start.
        mappings: where they lie.
    """

    dirty: PageSet
    present: PageSet
    mappings: Mappings


@dataclass(frozen=True, eq=False)
class CountedOnce:
    """The pages of a round, or of consecutive rounds, each counted once.

    Attributes:
        own: by address space, of those that are there at the end.
        files: pages written, by number of the file.
        classes: mapping class by file.
        before, after: pages with data at the start and at the end, by file.
        writers: of a single round: number of pages by (address spaces that wrote the page, address spaces that wrote
            to its file).
    """

    own: Mapping[int, OwnPages]
    files: Mapping[int, PageSet]
    classes: Mapping[int, str]
    before: Mapping[int, int]
    after: Mapping[int, int]
    writers: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def present_pages(self) -> int:
        """The number of pages to copy at the start."""
        return sum(len(own.present) for own in self.own.values()) + sum(self.before.values())

    @property
    def dirty_pages(self) -> int:
        """The number of pages written."""
        own = sum(len(own.dirty) for own in self.own.values())
        return own + sum(len(pages) for pages in self.files.values())

    @property
    def redirtied_pages(self) -> int:
        """The number of pages written that were present at the start."""
        own = sum(len(own.dirty & own.present) for own in self.own.values())
        return own + sum(len(pages) - self._new(file) for file, pages in self.files.items())

    def _new(self, file: int) -> int:
        """Return how many of a file's pages are new: written pages, as far as it has grown."""
        grown = self.after.get(file, 0) - self.before.get(file, 0)
        return min(max(grown, 0), len(self.files[file]))

    def joined(self, later: CountedOnce) -> CountedOnce:
        """Return these rounds joined with those after them."""
        own = {}
        for space, pages in later.own.items():
            old = self.own.get(space)
            dirty = pages.dirty if old is None else old.dirty | pages.dirty
            # created since: none of its pages was present then
            present = empty() if old is None else old.present
            own[space] = OwnPages(dirty, present, pages.mappings)
        files = dict(self.files)
        for file, written in later.files.items():
            files[file] = files[file] | written if file in files else written
        return CountedOnce(own, files, {**self.classes, **later.classes}, self.before, later.after)

    def by_class(self) -> dict[str, tuple[int, int]]:
        """Return (pages written, those present at the start) by mapping class."""
        own = np.zeros((len(CLASSES), 2), np.int64)
        for pages in self.own.values():
            if len(pages.dirty.keys):
                own[:, 0] += pages.mappings.count_by_class(pages.dirty)
                own[:, 1] += pages.mappings.count_by_class(pages.dirty & pages.present)
        counts = dict(zip(CLASSES, own, strict=True))
        for file, written in self.files.items():
            counts[self.classes[file]] += (len(written), len(written) - self._new(file))
        return {name: (int(found[0]), int(found[1])) for name, found in counts.items()}

    def union_of(self, sums: Floats) -> Floats:
        """Turn a curve that counts a page for each of its writers into one that counts it once.

        Which page a write fault was on is not known here, only how many writers each page had at the end. A page that
        k of n processes wrote is assumed to be written by each at a constant rate, the same for all; from these
        rates follow both how the sum over processes grows and how the union does, and so one from the other.

        Args:
            sums: (n,) ascending shares of the sum at the end, 0 to 1.

        Returns: (n,) pages.
        """
        if not self.writers:
            return np.zeros(len(sums))
        tau = np.linspace(0.0, 1.0, _STEPS)[:, None]
        k, n, pages = np.array([(k, n, pages) for (k, n), pages in self.writers.items()], float).T
        # Where all wrote a page, they probably write it even more often than the half missing one tells.
        rate = -np.log1p(-np.minimum(k, n - 0.5) / n)
        rate = np.where(
            n == 1, 1e-6, rate
        )  # of a single writer the shape of the sum is kept, see below
        written = np.expm1(-rate * tau) / np.expm1(-rate)
        shared = n > 1
        if shared.any():
            weight = (k * pages)[shared]
            mean = (written[:, shared] * weight).sum(axis=1) / weight.sum()
            written[:, ~shared] = mean[:, None]
        total = (written * (k * pages)).sum(axis=1)
        union = ((1 - (1 - written) ** k) * pages).sum(axis=1)
        found: Floats = np.interp(sums, total / total[-1], union)
        return found


class OnceCounter:
    """Counts pages once. Use: start(), then count() right after each round.

    Attributes:
        last: the last round's result; None before the first one.
    """

    def __init__(self) -> None:
        self.last: CountedOnce | None = None
        self._files = MappedFiles()
        self._pages: dict[int, int] = {}

    def start(self, spaces: Mapping[int, AddressSpace]) -> None:
        """Look at the target's mappings, once it is armed. Raises: RedirtyError as MappedFiles does."""
        self._files.update([(n, s.pid, s.mappings) for n, s in spaces.items() if not s.gone])
        self._pages = self._count()

    def _count(self) -> dict[int, int]:
        return {n: file.pages for n, file in self._files.files.items() if file.pages}

    def shown(self, space: int) -> Shown:
        """Return what an address space shows of files."""
        return self._files.shown(space)

    def count(self, result: Round, spaces: Mapping[int, AddressSpace]) -> CountedOnce:
        """Count a round. spaces: those that still exist, by number. Raises: RedirtyError as start() does."""
        living = [
            (s.space, s.pid, s.mappings)
            for s in result.spaces
            if s.mappings.items and s.space in spaces and not spaces[s.space].gone
        ]
        self._files.update(living)
        before, self._pages = self._pages, self._count()
        files = self._files.files.items()
        classes = {n: file.mapping_class for n, file in files if file.memory}
        there = {number for number, *_ in living}
        if (
            not there
        ):  # the round in which the target ended: the recording ends with it, not with nothing
            there = {s.space for s in result.spaces}
        self.last = counted(result, self.shown, classes, before, self._pages, there)
        return self.last


def counted(
    result: Round,
    shown: Where,
    classes: Mapping[int, str],
    before: Mapping[int, int],
    after: Mapping[int, int],
    there: Collection[int],
) -> CountedOnce:
    """Count the pages of a round once.

    Args:
        result: the round.
        shown: what its address spaces show.
        classes, before, after: see CountedOnce; files without a class are no memory, and are left out.
        there: numbers of the address spaces whose own pages count.
    """
    own: dict[int, OwnPages] = {}
    writes: dict[int, list[PageSet]] = {}
    origins: dict[int, int] = {}
    for space in result.spaces:
        shows = shown(space.space)
        in_files = within(space.dirty, shows.starts, shows.ends)
        if len(in_files.keys):
            for file, pages in _by_file(in_files, shows, origins).items():
                if file in classes:
                    writes.setdefault(file, []).append(pages)
        if space.space in there:
            dirty = space.dirty - in_files if len(in_files.keys) else space.dirty
            own[space.space] = OwnPages(dirty, _own_present(space, shows), space.mappings)
    writers: Counter[tuple[int, int]] = Counter()
    writers[1, 1] = sum(len(pages.dirty) for pages in own.values())
    files = {}
    for file, sets in writes.items():
        union, found = _joined(sets)
        files[file] = shifted(union, origins[file])
        writers += found
    return CountedOnce(own, files, classes, before, after, +writers)


def _own_present(space: SpaceRound, shows: Shown) -> PageSet:
    own = space.present - space.unowned
    return own - within(own, shows.starts, shows.ends) if len(shows.starts) else own


def _by_file(pages: PageSet, shows: Shown, origins: dict[int, int]) -> dict[int, PageSet]:
    """Translate pages of an address space, all of them in its shared mappings, to pages of files.

    origins: by file, the distance that is still to be added to all its pages: mostly all processes have the file at
        the same addresses, so that it is added once.
    """
    found: dict[int, PageSet] = {}
    rows = np.flatnonzero(count_in(pages, shows.starts, shows.ends))
    if len(rows) > _FEW:
        numbers = page_numbers(pages)
        at = np.searchsorted(shows.starts, numbers, side="right") - 1
        places = numbers.astype(np.int64) + shows.distance[at]
        files = shows.file[at]
        for file in np.unique(files).tolist():
            origin = origins.setdefault(file, 0)
            found[file] = from_pages((places[files == file] - origin).astype(np.uint64))
        return found
    for row in rows.tolist():
        part = pages
        if len(rows) > 1:
            part = within(pages, shows.starts[row : row + 1], shows.ends[row : row + 1])
        file, distance = int(shows.file[row]), int(shows.distance[row])
        # At most 0, so that no number becomes negative in between.
        moved = shifted(part, distance - origins.setdefault(file, min(distance, 0)))
        found[file] = found[file] | moved if file in found else moved
    return found


def _joined(sets: list[PageSet]) -> tuple[PageSet, Counter[tuple[int, int]]]:
    """Return the union, and the number of pages by (sets that have the page, all sets)."""
    if len(sets) == 1:
        return sets[0], Counter({(1, 1): len(sets[0])})
    union = empty()
    for pages in sets:
        union = union | pages
    counts = np.zeros((len(union.keys), 512), np.uint16)
    for pages in sets:
        counts[np.searchsorted(union.keys, pages.keys)] += matrix(pages)
    by_count = np.bincount(counts.reshape(-1)).tolist()
    return union, Counter(
        {(k, len(sets)): pages for k, pages in enumerate(by_count) if k and pages}
    )
