"""Writes a recording: rows as rounds end, sums periodically and at the end.

analyze/load.py reads the files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector import VERSION, files
from redirty.collector.bpf import abi
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.linux.maps import Mappings
from redirty.collector.metrics.counted_once import CountedOnce
from redirty.collector.metrics.frame_tracking import PhysicalRound
from redirty.collector.metrics.page_counts import CurveSum, PageHistory
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64, count_in, count_runs
from redirty.collector.recording import columns, tlb
from redirty.collector.recording.streaks import StreakFiles
from redirty.collector.recording.write_curves import CurveFiles
from redirty.collector.tracking.rounds import Round, SpaceRound

_SUMS_EVERY_S = 10.0
_SUMS_SHARE = 50  # at most a fiftieth of the time is spent on them
_ROWS_A_BLOCK = 100_000


@dataclass
class Meta:
    """Contents of meta.json.

    Attributes:
        target: the target's processes and how it was named.
        probe, arm: the kind of probe and the method of arming in use.
        interval_s: length of a round.
        kernel: release of the kernel.
        hooks: what the attached probes can count (bpf.hooks); `features` in the file.
        extra: further keys.
        started: UTC.
    """

    target: dict[str, Any]
    probe: str
    arm: str
    interval_s: float
    kernel: str
    hooks: frozenset[str]
    extra: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def content(self, complete: bool, rounds: int) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "schema": columns.SCHEMA,
            "redirty": VERSION,
            "kernel": self.kernel,
            "page_size": PAGE_SIZE,
            "target": self.target,
            "probe": self.probe,
            "arm": self.arm,
            "started": self.started.isoformat(),
            "interval_s": self.interval_s,
            "complete": complete,
            "rounds": rounds,
            "features": sorted(self.hooks),
            **self.extra,
        }


_INITIAL_FILES = [
    "meta.json",
    "rounds.csv",
    "mappings.csv",
    "tlb.csv",
    "curves.csv",
    "working_set.csv",
]


class RecordingWriter:
    """A recording being written into a new directory, `folder`.

    rounds.csv is written last in each round: a round that has no row there is not complete.

    Raises: RedirtyError when the directory or its files cannot be created.
    """

    def __init__(self, directory: Path, meta: Meta) -> None:
        self.directory = directory
        self.folder = folder = Folder.create(directory)
        self.meta = meta
        self.rounds = 0
        try:
            self._save_meta(complete=False)
            self._rounds = files.CsvFile(folder, "rounds.csv", columns.ROUNDS)
            self._mappings = files.CsvFile(folder, "mappings.csv", columns.MAPPINGS)
            self._tlb = files.CsvFile(folder, "tlb.csv", columns.TLB)
            self._curve_files = CurveFiles(folder)
        except RedirtyError:
            folder.remove(*_INITIAL_FILES)
            folder.remove_itself()
            raise
        self._streaks = StreakFiles(folder)
        self._pages: dict[int, PageHistory] = {}
        self._curves: dict[int, CurveSum] = {}
        self._last_mappings: dict[int, Mappings] = {}
        self._written: dict[int, Mappings] = {}  # mappings that have had a row
        self._sums_due = time.monotonic() + _SUMS_EVERY_S

    def _save_meta(self, complete: bool) -> None:
        files.write_json(self.folder, "meta.json", self.meta.content(complete, self.rounds))

    def add(
        self,
        result: Round,
        physical: PhysicalRound | None = None,
        once: CountedOnce | None = None,
        busiest_thread_s: float | None = None,
    ) -> None:
        """Write one round.

        Args:
            result: the round.
            physical: its page frames, if they are recorded.
            once: the same round with every page counted once.
            busiest_thread_s: CPU time of a virtual machine's busiest thread in it.

        Raises: RedirtyError when the disk is full; earlier rounds are kept.
        """
        mapping_rows: list[tuple[object, ...]] = []
        tlb_rows: list[tuple[object, ...]] = []
        self._streaks.follow(result)
        for space in result.spaces:
            mapping_rows += self._mapping_rows(result.number, space)
            if len(space.stats):
                tlb_rows += tlb.rows(result.number, space.pid, space.stats, self.meta.hooks)
        self._mappings.append(mapping_rows)
        self._tlb.append(tlb_rows)
        written_1s = self._curve_files.add(result, once)
        stayed = self._streaks.stayed_pages()
        row = round_row(
            result, self.meta.hooks, physical, stayed, once, written_1s, busiest_thread_s
        )
        self._rounds.append_record(row)
        self.rounds += 1
        for space in result.spaces:
            counts = self._pages.setdefault(space.pid, PageHistory())
            fresh = self._streaks.fresh(space)
            counts.add(result.number, space.dirty, space.redirtied, space.log, fresh)
            if space.mappings.items:
                self._last_mappings[space.pid] = space.mappings
            if len(space.stats):
                curve = self._curves.setdefault(space.pid, CurveSum())
                curve.add(space.hist, result.duration_s, len(space.dirty))
        if time.monotonic() > self._sums_due:
            self._write_sums()

    def _mapping_rows(self, number: int, space: SpaceRound) -> Iterator[tuple[object, ...]]:
        """Yield rows of mappings that were written, and of mappings that have had no row yet."""
        m = space.mappings
        if not m.items:
            return
        dirty = count_in(space.dirty, m.starts, m.ends)
        old = self._written.get(space.pid)
        self._written[space.pid] = m
        if old is m:
            chosen = np.flatnonzero(dirty).tolist()
        else:
            known = set() if old is None else set(old.items)
            chosen = [i for i, item in enumerate(m.items) if dirty[i] or item not in known]
        starts, ends = m.starts[chosen], m.ends[chosen]
        present = count_in(space.present, starts, ends)
        redirtied = count_in(space.redirtied, starts, ends)
        faults = count_in(space.log, starts, ends)
        stayed = self._streaks.stayed(space)
        stayed_pages = None if stayed is None else count_in(stayed, starts, ends)
        for k, i in enumerate(chosen):
            item = m.items[i]
            yield (
                number, space.pid,
                f"{item.start:#x}", f"{item.end:#x}", item.perms, item.mapping_class, item.path,
                int(present[k]), int(dirty[i]), int(redirtied[k]), int(faults[k]),
                None if stayed_pages is None else int(stayed_pages[k]),
            )  # fmt: skip

    # ---- sums ----

    def _write_sums(self) -> None:
        started = time.monotonic()
        errors = files.FirstError()
        with errors.caught():
            files.replace(self.folder, "pages.csv", self._page_blocks())
        with errors.caught():
            files.replace(self.folder, "curve.csv", [files.csv_bytes(self._curve_rows())])
        with errors.caught():
            self._streaks.write_runs()
        took = time.monotonic() - started
        self._sums_due = time.monotonic() + max(_SUMS_EVERY_S, took * _SUMS_SHARE)
        errors.raise_first()

    def _curve_rows(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = [columns.CURVE]
        for pid, total in sorted(self._curves.items()):
            curve = total.curve()
            pairs = zip(curve.elapsed_s.tolist(), curve.unique_dirty_pages.tolist(), strict=True)
            rows += [(pid, f"{t:.9f}", f"{w:.3f}") for t, w in pairs]
        return rows

    def _page_blocks(self) -> Iterator[bytes]:
        yield files.csv_bytes([columns.PAGES])
        for pid, counts in sorted(self._pages.items()):
            table = counts.table()
            pages = table["page"].astype(np.uint64, copy=False)
            classes = page_classes(pages, self._last_mappings.get(pid))
            for at in range(0, len(pages), _ROWS_A_BLOCK):
                block = slice(at, at + _ROWS_A_BLOCK)
                lists = [
                    table[n][block].tolist()
                    for n in ("dirty", "redirtied", "faults", "first", "last", "runs")
                ]
                lines = (
                    f"{pid},{page << PAGE_SHIFT:#x},{kind},{d},{r},{f},{first},{last},{runs}\r\n"
                    for page, kind, d, r, f, first, last, runs in zip(
                        pages[block].tolist(), classes[block], *lists, strict=True
                    )
                )
                yield "".join(lines).encode()

    def close(self, *, complete: bool, extra: dict[str, Any] | None = None) -> None:
        """Write the sums, and in meta.json whether the recording ran as long as planned.

        Raises: RedirtyError when the disk is full; what fits is written, and marked incomplete.
        """
        self.meta.extra |= extra or {}
        errors = files.FirstError()
        with errors.caught():
            self._write_sums()
        with errors.caught():
            self._save_meta(complete and errors.error is None)
        with errors.caught():
            self.folder.require_there()
        for file in (self._rounds, self._mappings, self._tlb, self._curve_files):
            file.close()
        errors.raise_first()


def page_classes(pages: U64, mappings: Mappings | None) -> list[str]:
    """Return the mapping class of each page number; empty for pages that are no longer mapped."""
    if mappings is None or not mappings.items:
        return [""] * len(pages)
    at = np.searchsorted(mappings.starts, pages, side="right") - 1
    inside = (at >= 0) & (pages < mappings.ends[np.maximum(at, 0)])
    names = np.array([m.mapping_class for m in mappings.items] + [""])
    found: list[str] = names[np.where(inside, at, len(names) - 1)].tolist()
    return found


def tlb_totals(
    counted: npt.NDArray[np.void], hooks: frozenset[str]
) -> tuple[int | None, float | None]:
    """Return (flushes started, seconds waited for them); None where unknown.

    counted: (n, 8) abi.TLB, by address space and reason.
    """
    if "tlb_time" in hooks:
        timed = [abi.TLB_MM_RANGE, abi.TLB_BATCH]
        return int(counted["flushes"][:, timed].sum()), float(counted["ns"][:, timed].sum()) / 1e9
    if "tlb" in hooks:
        # Started by the target: local flushes, and those requested from other CPUs, which is mostly the same
        # flush counted twice; not those caused by a context switch or by another CPU's request.
        local, remote = counted["flushes"][:, [2, 3]].sum(axis=1), counted["flushes"][:, 4]
        return int(np.maximum(local, remote).sum()), None
    return None, None


def round_row(
    result: Round,
    hooks: frozenset[str],
    physical: PhysicalRound | None = None,
    stayed: int | None = None,
    once: CountedOnce | None = None,
    written_1s: float | None = None,
    busiest_thread_s: float | None = None,
) -> dict[str, object]:
    """Return the row of rounds.csv, by column.

    Args:
        result: the round.
        hooks: see Meta.
        physical: its page frames, if they are recorded.
        stayed: pages that were dirty in the previous round, too; None if there was no previous round.
        once: the same round with every page counted once; None if that is not known.
        written_1s: pages written within a second, as last known; None if not known yet.
        busiest_thread_s: CPU time of a virtual machine's busiest thread.
    """
    spaces = result.spaces
    dirty = sum(len(s.dirty) for s in spaces)
    redirtied = sum(len(s.redirtied) for s in spaces)
    scans = [s.scanned_pages for s in spaces if s.scanned_pages is not None]
    flushes, flush_s = tlb_totals(result.stats["tlb"], hooks)
    return {
        "round": result.number,
        "start_s": f"{result.start_s:.6f}",
        "duration_s": f"{result.duration_s:.6f}",
        "arm_s": f"{result.arm_s:.6f}",
        "present_pages": sum(len(s.present) for s in spaces),
        "dirty_pages": dirty,
        "redirtied_pages": redirtied,
        "new_pages": dirty - redirtied,
        "log_pages": sum(len(s.log) for s in spaces),
        "scan_pages": sum(scans) if scans else None,
        "missed_pages": sum(len(s.missed) for s in spaces) if scans else None,
        "lost_events": int(result.stats["lost"].sum() + result.stats["lost_events"].sum()),
        "tlb_flushes": flushes,
        "tlb_flush_s": None if flush_s is None else f"{flush_s:.9f}",
        "dirty_frames": None if physical is None else len(physical.frames),
        "frameless_pages": None if physical is None else physical.frameless,
        "stayed_dirty_pages": stayed,
        "boundary_s": f"{result.boundary_s:.6f}",
        "written_1s_pages": None if written_1s is None else round(written_1s),
        "present_once_pages": None if once is None else once.present_pages,
        "dirty_once_pages": None if once is None else once.dirty_pages,
        "redirtied_once_pages": None if once is None else once.redirtied_pages,
        "dirty_runs": sum(count_runs(s.dirty) for s in spaces),
        "busiest_thread_s": None if busiest_thread_s is None else f"{busiest_thread_s:.3f}",
        **_fault_counts(result.stats["kinds"].sum(axis=0), hooks),
    }


def _fault_counts(kinds: npt.NDArray[np.uint64], hooks: frozenset[str]) -> dict[str, int | None]:
    """Return all write faults and those by kind; None where this kernel cannot count them.

    kinds: counts by abi's kinds. First touches are the rest where they have no probe of their own.
    """
    faults = int(kinds[abi.WRITE_FAULTS])
    first_touch: int | None = None
    if "first_touch" in hooks:
        first_touch = int(kinds[abi.FIRST_TOUCH])
    elif "write_protect" in hooks:
        first_touch = max(0, faults - int(kinds[abi.WRITE_PROTECT]))
    return {
        "write_faults": faults,
        "first_touch_faults": first_touch,
        "write_protect_faults": int(kinds[abi.WRITE_PROTECT]) if "write_protect" in hooks else None,
        "cow_faults": int(kinds[abi.COW]) if "cow" in hooks else None,
        "mkwrite_faults": int(kinds[abi.MKWRITE]) if "mkwrite" in hooks else None,
        "huge_faults": int(kinds[abi.HUGE]) if "huge" in hooks else None,
    }
