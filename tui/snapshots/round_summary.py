"""What one round was like: the same figures from a recording and from a running session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import CLASSES, Mapping
from redirty.collector.metrics.write_curves import Point
from redirty.collector.model.observations import ALL, Points
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, count_in
from redirty.collector.recording.columns import ROUNDS, TLB
from redirty.collector.recording.tlb import rows as tlb_rows
from redirty.collector.recording.writer import round_row
from redirty.collector.tracking.rounds import Round

Floats = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

COLUMN = {name: i for i, name in enumerate(ROUNDS)}
TLB_COLUMN = {name: i for i, name in enumerate(TLB)}
WORD_SHIFT = 18  # a place of the heat map at its finest: 64 pages, a word of a bitmap
PID_SHIFT = 39  # the process above the place: addresses have 57 bits
_MOST_PLACES = 1024  # of one round


@dataclass(frozen=True, eq=False)
class WrittenMappings:
    """Mappings written in a round: (n,) each. start: address. present when it began, dirty, redirtied
    in pages, faults: first logged write faults of pages."""

    mappings: tuple[Mapping, ...]
    pid: I64
    start: U64
    present: I64
    dirty: I64
    redirtied: I64
    faults: I64

    @classmethod
    def none(cls) -> WrittenMappings:
        """Nothing was written."""
        none = np.empty(0, np.int64)
        return cls((), none, none.astype(np.uint64), none, none, none, none)


@dataclass(frozen=True, eq=False)
class PageCounts:
    """Where pages were dirty: (n,) ascending places `pid << 39 | address >> 18`, of which the `shift`
    lowest bits are 0, and how many pages in each."""

    keys: U64
    pages: I64
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Writer:
    """Who dirtied pages in a round. tid: 0 for a stack, stack: empty for a thread."""

    pid: int
    tid: int
    stack: str
    pages: int


@dataclass(frozen=True, eq=False)
class RoundSummary:
    """One complete round. values: (columns of rounds.csv,), NaN where not known. tlb: rows of tlb.csv
    without their first column. points: of the curves that end with it. cpu_s: what the target's
    processes used of the CPU in it; None: not known."""

    number: int
    values: Floats
    written: WrittenMappings
    tlb: tuple[tuple[object, ...], ...]
    points: Points
    places: PageCounts
    cpu_s: float | None = None
    writers: tuple[Writer, ...] = ()

    def __getitem__(self, column: str) -> float:
        """A value of rounds.csv."""
        return float(self.values[COLUMN[column]])


def of_round(
    result: Round,
    features: frozenset[str],
    points: Points,
    cpu_s: float | None,
    writers: tuple[Writer, ...] = (),
) -> RoundSummary:
    """Of a round that has just ended; the same values that a recording would have of it."""
    row = round_row(result, features)
    tlb: list[tuple[object, ...]] = []
    for space in result.spaces:
        if len(space.stats):
            tlb += (r[1:] for r in tlb_rows(result.number, space.pid, space.stats, features))
    return RoundSummary(
        result.number,
        np.array([np.nan if v is None else float(str(v)) for v in (row[name] for name in COLUMN)]),
        _written(result),
        tuple(tlb),
        points,
        places_of([(space.pid, space.dirty) for space in result.spaces]),
        cpu_s,
        writers,
    )


def _written(result: Round) -> WrittenMappings:
    mappings: list[Mapping] = []
    columns: list[tuple[I64 | U64, ...]] = []
    for space in result.spaces:
        m = space.mappings
        if not m.items:
            continue
        dirty = count_in(space.dirty, m.starts, m.ends)
        chosen = np.flatnonzero(dirty)
        starts, ends = m.starts[chosen], m.ends[chosen]
        mappings += [m.items[i] for i in chosen.tolist()]
        columns.append(
            (
                np.full(len(chosen), space.pid, np.int64),
                starts << np.uint64(PAGE_SHIFT),
                count_in(space.present, starts, ends),
                dirty[chosen],
                count_in(space.redirtied, starts, ends),
                count_in(space.log, starts, ends),
            )
        )
    if not mappings:
        return WrittenMappings.none()
    joined: list[Any] = [np.concatenate(c) for c in zip(*columns, strict=True)]
    return WrittenMappings(tuple(mappings), *joined)


def places_of(sets: list[tuple[int, PageSet]]) -> PageCounts:
    """Of the dirty pages of processes: (pid, pages) each."""
    keys, counts = [], []
    for pid, pages in sets:
        flat = np.bitwise_count(pages.words).reshape(-1).astype(np.int64)
        there = np.flatnonzero(flat)
        words = (pages.keys[there >> 3] << np.uint64(3)) | (there & 7).astype(np.uint64)
        keys.append(words | np.uint64(pid << PID_SHIFT))
        counts.append(flat[there])
    if not keys:
        return PageCounts(np.empty(0, np.uint64), np.empty(0, np.int64))
    return folded(np.concatenate(keys), np.concatenate(counts))


def folded(keys: U64, pages: I64) -> PageCounts:
    """PageCounts in any order, repeated or not, made as coarse as it takes to be few."""
    order = np.argsort(keys, kind="stable")
    keys, pages = summed(keys[order], pages[order])
    shift = 0
    while len(keys) > _MOST_PLACES and shift < PID_SHIFT:
        shift += 1
        keys, pages = coarser(keys, pages, shift)
    return PageCounts(keys, pages, shift)


def coarser(keys: U64, pages: I64, shift: int) -> tuple[U64, I64]:
    """Ascending places with so many lowest bits 0."""
    return summed((keys >> np.uint64(shift)) << np.uint64(shift), pages)


def summed(keys: U64, pages: I64) -> tuple[U64, I64]:
    """Ascending places, each once."""
    if len(keys) == 0:
        return keys, pages
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[starts], np.add.reduceat(pages, starts)


def points_of(points: list[Point]) -> Points:
    """Points of curves as the model takes them; classes are numbered as in CLASSES."""
    if not points:
        return Points.none()

    def column(value: Callable[[Point], float]) -> Floats:
        return np.array([value(p) for p in points], np.float64)

    return Points(
        column(lambda p: p.round).astype(np.int64),
        column(lambda p: p.rounds).astype(np.int64),
        np.array([ALL if not p.mapping_class else CLASSES.index(p.mapping_class) for p in points]),
        column(lambda p: p.elapsed_s),
        column(lambda p: p.dirty),
        column(lambda p: np.nan if p.redirtied is None else p.redirtied),
    )
