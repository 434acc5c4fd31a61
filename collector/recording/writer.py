"""Writes a recording: rows as rounds end, sums at the end and now and then in between."""

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
from redirty.collector.linux.maps import Mappings
from redirty.collector.metrics.frame_tracking import PhysicalRound
from redirty.collector.metrics.page_counts import CurveSum, PageHistory
from redirty.collector.pageset import PAGE_SHIFT, U64, count_in
from redirty.collector.recording import columns, tlb
from redirty.collector.recording.streaks import StreakFiles
from redirty.collector.recording.write_curves import CurveFiles
from redirty.collector.tracking.rounds import Round, SpaceRound

_SUMS_EVERY_S = 10.0
_SUMS_SHARE = 50  # and at most a fiftieth of the time goes into them
_ROWS_A_BLOCK = 100_000


@dataclass
class Meta:
    """What meta.json says. features: what the probes that took hold can tell (attach.entries)."""

    target: dict[str, Any]
    probe: str
    arm: str
    interval_s: float
    kernel: str
    features: frozenset[str]
    extra: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def content(self, complete: bool, rounds: int) -> dict[str, Any]:
        """The JSON object."""
        return {
            "schema": columns.SCHEMA,
            "redirty": VERSION,
            "kernel": self.kernel,
            "page_size": 1 << PAGE_SHIFT,
            "target": self.target,
            "probe": self.probe,
            "arm": self.arm,
            "started": self.started.isoformat(),
            "interval_s": self.interval_s,
            "complete": complete,
            "rounds": rounds,
            "features": sorted(self.features),
            **self.extra,
        }


_FIRST_FILES = [
    "meta.json",
    "rounds.csv",
    "mappings.csv",
    "tlb.csv",
    "curves.csv",
    "working_set.csv",
]


class RecordingWriter:
    """A recording being written into a new directory.

    rounds.csv is written last in each round: a round that has no row there is not complete.
    """

    def __init__(self, directory: Path, meta: Meta) -> None:
        self.directory = directory
        self.meta = meta
        self.rounds = 0
        files.new_directory(directory)
        try:
            self._save_meta(complete=False)
            self._rounds = files.CsvFile(directory / "rounds.csv", columns.ROUNDS)
            self._mappings = files.CsvFile(directory / "mappings.csv", columns.MAPPINGS)
            self._tlb = files.CsvFile(directory / "tlb.csv", columns.TLB)
            self._grown = CurveFiles(directory)
        except RedirtyError:
            files.remove_directory(directory, _FIRST_FILES)
            raise
        self._again = StreakFiles(directory)
        self._pages: dict[int, PageHistory] = {}
        self._curves: dict[int, CurveSum] = {}
        self._last_mappings: dict[int, Mappings] = {}
        self._shown: dict[int, Mappings] = {}
        self._sums_due = time.monotonic() + _SUMS_EVERY_S

    def _save_meta(self, complete: bool) -> None:
        files.write_json(self.directory / "meta.json", self.meta.content(complete, self.rounds))

    def add(self, result: Round, physical: PhysicalRound | None = None) -> None:
        """Writes one round down. physical: its frames, when they are looked at.

        Errors: RedirtyError (disk full); rounds before stay as they are.
        """
        mapping_rows: list[tuple[object, ...]] = []
        tlb_rows: list[tuple[object, ...]] = []
        self._again.follow(result)
        for space in result.spaces:
            mapping_rows += self._mapping_rows(result.number, space)
            if len(space.stats):
                tlb_rows += tlb.rows(result.number, space.pid, space.stats, self.meta.features)
        self._mappings.append(mapping_rows)
        self._tlb.append(tlb_rows)
        self._grown.add(result)
        stayed = self._again.stayed_pages()
        self._rounds.append([round_row(result, self.meta.features, physical, stayed)])
        self.rounds += 1
        for space in result.spaces:
            counts = self._pages.setdefault(space.pid, PageHistory())
            fresh = self._again.fresh(space)
            counts.add(result.number, space.dirty, space.redirtied, space.log, fresh)
            if space.mappings.items:
                self._last_mappings[space.pid] = space.mappings
            if len(space.stats):
                curve = self._curves.setdefault(space.pid, CurveSum())
                curve.add(space.stats["hist"][0], result.duration_s, len(space.dirty))
        if time.monotonic() > self._sums_due:
            self._write_sums()

    def _mapping_rows(self, number: int, space: SpaceRound) -> Iterator[tuple[object, ...]]:
        """Mappings that were written, and all when they are first seen or when the list changed."""
        m = space.mappings
        if not m.items:
            return
        dirty = count_in(space.dirty, m.starts, m.ends)
        old = self._shown.get(space.pid)
        self._shown[space.pid] = m
        if old is m:
            chosen = np.flatnonzero(dirty).tolist()
        else:
            known = set() if old is None else set(old.items)
            chosen = [i for i, item in enumerate(m.items) if dirty[i] or item not in known]
        starts, ends = m.starts[chosen], m.ends[chosen]
        present = count_in(space.present, starts, ends)
        redirtied = count_in(space.redirtied, starts, ends)
        faults = count_in(space.log, starts, ends)
        stayed = self._again.stayed(space)
        again = None if stayed is None else count_in(stayed, starts, ends)
        for k, i in enumerate(chosen):
            item = m.items[i]
            yield (
                *(
                    number,
                    space.pid,
                    f"{item.start:#x}",
                    f"{item.end:#x}",
                    item.perms,
                    item.mapping_class,
                ),
                *(item.path, int(present[k]), int(dirty[i]), int(redirtied[k]), int(faults[k])),
                None if again is None else int(again[k]),
            )

    # ---- sums ----

    def _write_sums(self) -> None:
        begun = time.monotonic()
        errors = files.FirstError()
        with errors.caught():
            files.replace(self.directory / "pages.csv", self._page_blocks())
        with errors.caught():
            files.replace(self.directory / "curve.csv", [files.csv_bytes(self._curve_rows())])
        with errors.caught():
            self._again.write_runs()
        took = time.monotonic() - begun
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
                part = slice(at, at + _ROWS_A_BLOCK)
                lists = [
                    table[n][part].tolist()
                    for n in ("dirty", "redirtied", "faults", "first", "last", "runs")
                ]
                lines = (
                    f"{pid},{page << PAGE_SHIFT:#x},{kind},{d},{r},{f},{first},{last},{runs}\r\n"
                    for page, kind, d, r, f, first, last, runs in zip(
                        pages[part].tolist(), classes[part], *lists, strict=True
                    )
                )
                yield "".join(lines).encode()

    def close(self, *, complete: bool, extra: dict[str, Any] | None = None) -> None:
        """Writes the sums and says in meta.json whether the recording ran as long as it was to.

        Errors: RedirtyError (disk full); what fitted was written, and it is not complete.
        """
        self.meta.extra |= extra or {}
        errors = files.FirstError()
        with errors.caught():
            self._write_sums()
        with errors.caught():
            self._save_meta(complete and errors.error is None)
        for file in (self._rounds, self._mappings, self._tlb, self._grown):
            file.close()
        errors.raise_first()


def page_classes(pages: U64, mappings: Mappings | None) -> list[str]:
    """The mapping class of each page number; empty for pages in no mapping any more."""
    if mappings is None or not mappings.items:
        return [""] * len(pages)
    at = np.searchsorted(mappings.starts, pages, side="right") - 1
    inside = (at >= 0) & (pages < mappings.ends[np.maximum(at, 0)])
    names = np.array([*(m.mapping_class for m in mappings.items), ""])
    found: list[str] = names[np.where(inside, at, len(names) - 1)].tolist()
    return found


def _sum_if(present: bool, value: object) -> int | None:
    """A count, or None where this kernel cannot know it."""
    return int(value) if present else None  # type: ignore[call-overload]


def tlb_totals(
    counted: npt.NDArray[np.void], features: frozenset[str]
) -> tuple[int | None, float | None]:
    """(flushes begun, seconds waited for them) of (n, 8) abi.TLB; None where not known."""
    if "tlb_time" in features:
        timed = [abi.TLB_MM_RANGE, abi.TLB_BATCH]
        return int(counted["flushes"][:, timed].sum()), float(counted["ns"][:, timed].sum()) / 1e9
    if "tlb" in features:
        # begun here: local ones and those another CPU was asked for, which is mostly the same
        # flush twice; not what a switch of tasks or another CPU's request caused
        here, asked = counted["flushes"][:, [2, 3]].sum(axis=1), counted["flushes"][:, 4]
        return int(np.maximum(here, asked).sum()), None
    return None, None


def round_row(
    result: Round,
    features: frozenset[str],
    physical: PhysicalRound | None = None,
    stayed: int | None = None,
) -> tuple[object, ...]:
    """The row of rounds.csv. stayed: pages dirty in the round before, too, where there was one."""
    spaces = result.spaces
    kinds = result.stats["kinds"].sum(axis=0)
    dirty = sum(len(s.dirty) for s in spaces)
    redirtied = sum(len(s.redirtied) for s in spaces)
    scans = [s.scanned_pages for s in spaces if s.scanned_pages is not None]
    flushes, flush_s = tlb_totals(result.stats["tlb"], features)
    faults = int(kinds[abi.WRITE_FAULTS])
    if "first_touch" in features:
        first_touch: int | None = int(kinds[abi.FIRST_TOUCH])
    elif "write_protect" in features:
        first_touch = max(0, faults - int(kinds[abi.WRITE_PROTECT]))
    else:
        first_touch = None
    return (
        *(
            result.number,
            f"{result.start_s:.6f}",
            f"{result.duration_s:.6f}",
            f"{result.arm_s:.6f}",
        ),
        *(sum(len(s.present) for s in spaces), dirty, redirtied, dirty - redirtied),
        sum(len(s.log) for s in spaces),
        sum(scans) if scans else None,
        sum(len(s.missed) for s in spaces) if scans else None,
        faults,
        int(result.stats["lost"].sum() + result.stats["lost_events"].sum()),
        *(flushes, None if flush_s is None else f"{flush_s:.9f}"),
        first_touch,
        _sum_if("write_protect" in features, kinds[abi.WRITE_PROTECT]),
        _sum_if("cow" in features, kinds[abi.COW]),
        _sum_if("mkwrite" in features, kinds[abi.MKWRITE]),
        _sum_if("huge" in features, kinds[abi.HUGE]),
        None if physical is None else len(physical.frames),
        None if physical is None else physical.frameless,
        stayed,
        f"{result.boundary_s:.6f}",
    )
