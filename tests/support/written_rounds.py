"""Rounds of made-up writers, as the recorder would return them, from the moments at which they write pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.pageset import PAGE_SIZE, PageSet, from_pages
from redirty.collector.recording.writer import RecordingWriter
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.factories import meta

FIRST_PAGE = 0x7F0000000
_EDGES_S = abi.hist_edges_ns() / 1e9

# writes(rng, start_s, seconds): the moments since start_s, ascending, and the page that is written at each.
Writes = Callable[[np.random.Generator, float, float], tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def uniform(pages: int, per_s: float) -> Writes:
    """Write random pages of an area."""

    def writes(
        rng: np.random.Generator, start_s: float, seconds: float
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        count = round(per_s * seconds)
        return (np.arange(count) + 0.5) / per_s, rng.integers(0, pages, count)

    return writes


def cyclic(pages: int, per_s: float, *, end: bool = True) -> Writes:
    """Write an area from its start to its end, again and again; end: False: on and on, each page once."""

    def writes(
        rng: np.random.Generator, start_s: float, seconds: float
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        first, last = round(start_s * per_s), round((start_s + seconds) * per_s)
        every = np.arange(first, last)
        return (every - first + 0.5) / per_s, every % pages if end else every

    return writes


def skewed(pages: int, per_s: float) -> Writes:
    """Write mostly the first pages of an area."""

    def writes(
        rng: np.random.Generator, start_s: float, seconds: float
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        count = round(per_s * seconds)
        where = np.floor(pages * rng.random(count) ** 4).astype(np.int64)
        return (np.arange(count) + 0.5) / per_s, where

    return writes


@dataclass(frozen=True)
class Process:
    """A made-up process: its writes, and the pages present when it is first seen."""

    writes: Writes
    present: int
    pid: int = 77


def make_rounds(
    processes: Sequence[Process],
    lengths_s: Sequence[float],
    boundaries_s: Sequence[float],
    changes: Callable[[int, Writes], Writes] = lambda number, writes: writes,
    seed: int = 1,
) -> list[Round]:
    """Return rounds of some lengths; changes(number, writes): what a process writes in a round instead."""
    rng = np.random.default_rng(seed)
    present = {p.pid: np.arange(p.present) for p in processes}
    found, start_s = [], 0.0
    for number, (seconds, boundary_s) in enumerate(zip(lengths_s, boundaries_s, strict=True)):
        stats = np.zeros(len(processes) + 1, abi.STATS)
        spaces = []
        for slot, process in enumerate(processes, 1):
            times, pages = changes(number, process.writes)(rng, start_s, seconds)
            written, first = np.unique(pages, return_index=True)
            at = np.searchsorted(_EDGES_S, times[first])
            hist = np.bincount(at[at < len(_EDGES_S)], minlength=len(_EDGES_S))
            stats["hist"][slot] = hist.astype(np.uint64)
            there = present[process.pid]
            spaces.append(_space(process.pid, written, there, stats[slot : slot + 1].copy()))
            present[process.pid] = np.union1d(there, written)
        found.append(
            Round(number, start_s, seconds, 0.0, tuple(spaces), stats, boundary_s=boundary_s)
        )
        start_s += seconds
    return found


def _set(pages: npt.NDArray[np.int64]) -> PageSet:
    return from_pages(pages.astype(np.uint64) + np.uint64(FIRST_PAGE))


def _space(
    pid: int,
    written: npt.NDArray[np.int64],
    there: npt.NDArray[np.int64],
    stats: npt.NDArray[np.void],
) -> SpaceRound:
    last = int(max(there.max(initial=0), written.max(initial=0))) + 1
    area = Mapping(FIRST_PAGE * PAGE_SIZE, (FIRST_PAGE + last) * PAGE_SIZE, "rw-p", "")
    dirty, present = _set(written), _set(there)
    return SpaceRound(
        pid=pid,
        space=pid,
        mappings=Mappings.of((area,)),
        present=present,
        log=dirty,
        missed=_set(written[:0]),
        dirty=dirty,
        redirtied=dirty & present,
        scanned_pages=len(dirty),
        stats=stats,
    )


def write_recording(directory: Path, rounds: Sequence[Round], *, complete: bool = True) -> Path:
    """Write a recording of rounds, and return its directory."""
    made = RecordingWriter(directory, meta())
    for one in rounds:
        made.add(one)
    made.close(complete=complete)
    return directory
