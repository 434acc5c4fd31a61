"""Observations of a target, the input of the model: from a recording or from a live session."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALL = -1  # as a mapping class: all classes together


@dataclass(frozen=True, eq=False)
class Points:
    """Points of write curves, in any order: (m,) each.

    Attributes:
        number: the round whose arm the time is measured from.
        rounds: number of whole rounds that the time spans, 0 inside a round.
        mapping_class: index into Observations.classes, or ALL.
        elapsed_s: seconds since the arm.
        dirty: distinct pages of the class that were written within that time.
        redirtied: those of them that were present at the arm; NaN when unknown.
        raced: those of them that were written only before they were protected, while the first round was armed;
            NaN when unknown, and inside a round, where dirty is without them.
    """

    number: Ints
    rounds: Ints
    mapping_class: Ints
    elapsed_s: Floats
    dirty: Floats
    redirtied: Floats
    raced: Floats

    @classmethod
    def none(cls) -> Points:
        """Return no points: an older recording has none."""
        ints, floats = np.empty(0, np.int64), np.empty(0)
        return cls(ints, ints, ints, floats, floats, floats, floats)

    def without_raced(self) -> Points:
        """Return the points without the pages that are known to be raced."""
        return replace(self, dirty=self.dirty - np.nan_to_num(self.raced))

    def chosen(self, which: npt.NDArray[np.bool_]) -> Points:
        """Return the points that a mask (m,) selects."""
        return Points(
            self.number[which],
            self.rounds[which],
            self.mapping_class[which],
            self.elapsed_s[which],
            self.dirty[which],
            self.redirtied[which],
            self.raced[which],
        )


@dataclass(frozen=True, eq=False)
class MappingRate:
    """The recent write rate of a mapping.

    Attributes:
        name: start address and path.
        mapping_class: one of linux.maps.CLASSES.
        pid: the process.
        dirty_per_s: pages per second.
    """

    name: str
    mapping_class: str
    pid: int
    dirty_per_s: float

    @classmethod
    def of(
        cls, start: int, path: str, mapping_class: str, pid: int, dirty_per_s: float
    ) -> MappingRate:
        """Build the rate of the mapping at an address; path: empty for anonymous memory."""
        return cls(f"{start:#x} {path or '(anonymous)'}", mapping_class, pid, dirty_per_s)


@dataclass(frozen=True, eq=False)
class Layout:
    """Memory in the order in which the first pass copies it, piece by piece.

    Attributes:
        pages: (n,) pages of each piece.
        zero: (n,) those of them that were never touched, or contain only zeros.
    """

    pages: Floats
    zero: Floats


@dataclass(frozen=True, eq=False)
class Observations:
    """Complete rounds, in ascending order, and points of their write curves.

    Attributes:
        page_size: in bytes.
        number: (n,) round numbers.
        duration_s, arm_s: (n,) length of each round, and of its arm.
        present, dirty, redirtied, missed: (n,) pages.
        points: points of write curves.
        classes: names of the mapping classes that the points refer to.
        average: (elapsed_s, pages) of an average curve, for recordings that have no points.
        mappings: recent write rates, the fastest first.
        layout: positions of the zero pages, if they were counted.
        boundary_s: (n,) how long the end of each round took, NaN where unknown; None: not measured.
        busy: share of the time for which the busiest thread of a virtual machine runs, in (0, 1]; None: not known.
        run_pages: mean number of dirty pages that follow each other in memory; None: not known.
    """

    page_size: int
    number: Ints
    duration_s: Floats
    arm_s: Floats
    present: Floats
    dirty: Floats
    redirtied: Floats
    missed: Floats
    points: Points
    classes: tuple[str, ...] = ()
    average: tuple[Floats, Floats] | None = None
    mappings: tuple[MappingRate, ...] = field(default=())
    layout: Layout | None = None
    boundary_s: Floats | None = None
    run_pages: float | None = None
    busy: float | None = None

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.number)

    def until(self, count: int) -> Observations:
        """Return the first `count` rounds, as if the observation had ended with them."""
        if count >= self.rounds:
            return self
        cut = slice(0, count)
        ends = self.points.number + np.maximum(self.points.rounds, 1) - 1
        return replace(
            self,
            number=self.number[cut],
            duration_s=self.duration_s[cut],
            arm_s=self.arm_s[cut],
            present=self.present[cut],
            dirty=self.dirty[cut],
            redirtied=self.redirtied[cut],
            missed=self.missed[cut],
            points=self.points.chosen(ends <= self.number[count - 1]),
            boundary_s=None if self.boundary_s is None else self.boundary_s[cut],
        )
