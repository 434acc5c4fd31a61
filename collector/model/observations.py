"""What was seen of a target, as the model takes it: from a recording or from a live session."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALL = -1  # as a class: all of them together


@dataclass(frozen=True, eq=False)
class Points:
    """Points of single rounds' write curves, in any order: (m,) each. Within elapsed_s of the arm that
    began round `number`, `dirty` distinct pages of a class were written, `redirtied` of them present at
    that arm (NaN: not known). rounds: how many whole rounds that is, 0 inside one. mapping_class: an
    index into Observations.classes, or ALL."""

    number: Ints
    rounds: Ints
    mapping_class: Ints
    elapsed_s: Floats
    dirty: Floats
    redirtied: Floats

    @classmethod
    def none(cls) -> Points:
        """Of a recording that has none."""
        ints, floats = np.empty(0, np.int64), np.empty(0)
        return cls(ints, ints, ints, floats, floats, floats)

    def chosen(self, which: npt.NDArray[np.bool_]) -> Points:
        """Some of them."""
        return Points(
            self.number[which],
            self.rounds[which],
            self.mapping_class[which],
            self.elapsed_s[which],
            self.dirty[which],
            self.redirtied[which],
        )


@dataclass(frozen=True, eq=False)
class MappingRate:
    """One mapping and how fast it was written lately, in pages per second."""

    name: str
    mapping_class: str
    pid: int
    dirty_per_s: float


@dataclass(frozen=True, eq=False)
class Layout:
    """Memory in the order in which it is copied first, in pieces: (n,) pages of each, and those of them
    that are zero: never touched, or full of zeros."""

    pages: Floats
    zero: Floats


@dataclass(frozen=True, eq=False)
class Observations:
    """Complete rounds, (n,) each, ascending, in pages and seconds; and points of their curves.

    average: (elapsed_s, pages) of an average curve, for recordings that have no points. layout: where
    the zero pages were counted. boundary_s: how long the end of a round takes, as a rule.
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
    boundary_s: float = 0.0

    @property
    def rounds(self) -> int:
        """How many."""
        return len(self.number)
