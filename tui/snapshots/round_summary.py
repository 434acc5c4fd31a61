"""Summary of one round: the same figures from a recording and from a live recorder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import Mapping
from redirty.collector.metrics.counted_once import CountedOnce
from redirty.collector.model.observations import Points
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, count_in
from redirty.collector.recording.columns import ROUNDS, TLB
from redirty.collector.recording.tlb import rows as tlb_rows
from redirty.collector.recording.writer import round_row
from redirty.collector.tracking.rounds import Round

Floats = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

COLUMN = {name: i for i, name in enumerate(ROUNDS)}
TLB_COLUMN = {name: i for i, name in enumerate(TLB)}
BLOCK_SHIFT = 18  # a block of the heat map at its finest: 64 pages, a word of a bitmap
PID_SHIFT = 39  # the process is above the block number: addresses have 57 bits
_MAX_BLOCKS = 1024  # of one round


@dataclass(frozen=True, eq=False)
class WrittenMappings:
    """The mappings written in a round.

    Attributes:
        mappings: n mappings.
        pid: (n,) process.
        start: (n,) address.
        present: (n,) pages present at the start of the round.
        dirty: (n,) pages.
        redirtied: (n,) pages.
        faults: (n,) pages in the write-fault log.
    """

    mappings: tuple[Mapping, ...]
    pid: I64
    start: U64
    present: I64
    dirty: I64
    redirtied: I64
    faults: I64

    @classmethod
    def none(cls) -> WrittenMappings:
        """Return no mappings."""
        none = np.empty(0, np.int64)
        return cls((), none, none.astype(np.uint64), none, none, none, none)


@dataclass(frozen=True, eq=False)
class PageCounts:
    """Dirty pages by address block.

    Attributes:
        keys: (n,) ascending blocks, `pid << 39 | address >> 18`; the lowest `shift` bits are 0.
        pages: (n,) dirty pages in each.
        shift: log2 of the finest blocks that are merged into one.
    """

    keys: U64
    pages: I64
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Writer:
    """A thread or a stack that dirtied pages in a round.

    Attributes:
        pid: process.
        tid: thread; 0 for a stack.
        stack: folded stack; empty for a thread.
        pages: number of pages dirtied.
    """

    pid: int
    tid: int
    stack: str
    pages: int


@dataclass(frozen=True, eq=False)
class RoundSummary:
    """A complete round; summary[column] returns a value of rounds.csv.

    Attributes:
        number: of the round.
        values: (columns of rounds.csv,), NaN where unknown.
        written: mappings written.
        tlb: rows of tlb.csv without their first column.
        points: points of the write curves that end with this round.
        page_counts: dirty pages by address block.
        cpu_s: CPU time used by the target's processes; None: unknown.
        writers: threads and stacks; empty: not traced.
        own_cpu_s: CPU time used by redirty itself; None: unknown.
    """

    number: int
    values: Floats
    written: WrittenMappings
    tlb: tuple[tuple[object, ...], ...]
    points: Points
    page_counts: PageCounts
    cpu_s: float | None = None
    writers: tuple[Writer, ...] = ()
    own_cpu_s: float | None = None

    def __getitem__(self, column: str) -> float:
        """Return a value of rounds.csv."""
        return float(self.values[COLUMN[column]])


def of_round(
    result: Round,
    hooks: frozenset[str],
    points: Points,
    cpu_s: float | None,
    writers: tuple[Writer, ...] = (),
    once: CountedOnce | None = None,
    written_1s: float | None = None,
) -> RoundSummary:
    """Summarize a round that has just ended, with the values that a recording of it would have.

    Args:
        result: the round.
        hooks: attached probes, which decide which values are known.
        points: points of the write curves that end with this round.
        cpu_s: CPU time used by the target's processes; None: unknown.
        writers: threads and stacks.
        once: the same round with every page counted once.
        written_1s: pages written within a second, as last known; None: not known yet.
    """
    row = round_row(result, hooks, once=once, written_1s=written_1s)
    tlb: list[tuple[object, ...]] = []
    for space in result.spaces:
        if len(space.stats):
            tlb += (r[1:] for r in tlb_rows(result.number, space.pid, space.stats, hooks))
    return RoundSummary(
        number=result.number,
        values=np.array(
            [np.nan if v is None else float(str(v)) for v in (row[name] for name in COLUMN)]
        ),
        written=_written(result),
        tlb=tuple(tlb),
        points=points,
        page_counts=page_counts_of([(space.pid, space.dirty) for space in result.spaces]),
        cpu_s=cpu_s,
        writers=writers,
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


def page_counts_of(sets: list[tuple[int, PageSet]]) -> PageCounts:
    """Count dirty pages by block. sets: (pid, dirty pages) of each process."""
    keys, counts = [], []
    for pid, pages in sets:
        flat = np.bitwise_count(pages.words).reshape(-1).astype(np.int64)
        there = np.flatnonzero(flat)
        words = (pages.keys[there >> 3] << np.uint64(3)) | (there & 7).astype(np.uint64)
        keys.append(words | np.uint64(pid << PID_SHIFT))
        counts.append(flat[there])
    if not keys:
        return PageCounts(np.empty(0, np.uint64), np.empty(0, np.int64))
    return fold(np.concatenate(keys), np.concatenate(counts))


def fold(keys: U64, pages: I64) -> PageCounts:
    """Return counts given in any order, with repetitions, as at most _MAX_BLOCKS blocks."""
    order = np.argsort(keys, kind="stable")
    keys, pages = merge(keys[order], pages[order])
    shift = 0
    while len(keys) > _MAX_BLOCKS and shift < PID_SHIFT:
        shift += 1
        keys, pages = coarsen(keys, pages, shift)
    return PageCounts(keys, pages, shift)


def coarsen(keys: U64, pages: I64, shift: int) -> tuple[U64, I64]:
    """Merge ascending blocks that differ only in their lowest `shift` bits."""
    return merge((keys >> np.uint64(shift)) << np.uint64(shift), pages)


def merge(keys: U64, pages: I64) -> tuple[U64, I64]:
    """Add up the pages of equal keys, which must be ascending."""
    if len(keys) == 0:
        return keys, pages
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[starts], np.add.reduceat(pages, starts)
