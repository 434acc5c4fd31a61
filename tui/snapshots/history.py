"""The latest rounds, and the values computed from them: rates, mappings, heat map, TLB, model input."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from redirty.collector.linux.maps import CLASSES, Mapping
from redirty.collector.model.observations import MappingRate, Observations, Points
from redirty.collector.pageset import PAGE_SIZE, U64
from redirty.tui.snapshots.heat import HEAT_COLUMNS, HeatMap, heat_map
from redirty.tui.snapshots.round_summary import (
    COLUMN,
    I64,
    TLB_COLUMN,
    Floats,
    RoundSummary,
    Writer,
)

KEPT = 240  # rounds
MEAN = 5  # rounds that rates of mappings, writers and flushes are averaged over
_MAX_NAMED = 8  # mappings that the model may name
_COUNTED = ("present", "dirty", "redirtied", "faults")


@dataclass(frozen=True, eq=False)
class Series:
    """Columns of rounds.csv: values is (n, columns), ascending by round, NaN where unknown."""

    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, column: str) -> Floats:
        """Return a column, (n,)."""
        found: Floats = self.values[:, COLUMN[column]]
        return found

    def once(self, name: str) -> Floats:
        """Return present, dirty or redirtied pages, (n,), each page counted once where that is known."""
        pages, all_pages = self[f"{name}_once_pages"], self[f"{name}_pages"]
        found: Floats = np.where(np.isnan(pages), all_pages, pages)
        return found

    def per_s(self, column: str) -> Floats:
        """Return a column divided by the length of its round, (n,)."""
        return self[column] / np.maximum(self["duration_s"], 1e-9)

    def once_per_s(self, name: str) -> Floats:
        """Return what once() returns, divided by the length of its round, (n,)."""
        return self.once(name) / np.maximum(self["duration_s"], 1e-9)


@dataclass(frozen=True, eq=False)
class MappingTable:
    """Recently written mappings, those re-dirtied most first; table[i] returns the i-th Mapping.

    Attributes:
        parts: mappings by the round in which they were written.
        part: (n,) index in parts of each mapping's latest occurrence.
        row: (n,) index in that part.
        pid: (n,) process.
        start: (n,) address.
        dirty_per_s: (n,) pages per second.
        redirtied_per_s: (n,) pages per second.
        faults_per_s: (n,) pages in the write-fault log per second.
        present: (n,) pages present at the start of the latest round.
        seconds: period that the rates are averaged over.
    """

    parts: tuple[tuple[Mapping, ...], ...]
    part: I64
    row: I64
    pid: I64
    start: U64
    dirty_per_s: Floats
    redirtied_per_s: Floats
    faults_per_s: Floats
    present: I64
    seconds: float

    def __len__(self) -> int:
        return len(self.pid)

    def __getitem__(self, i: int) -> Mapping:
        """Return a row's mapping: there may be 60,000, of which a screen shows 40."""
        return self.parts[int(self.part[i])][int(self.row[i])]


@dataclass(frozen=True)
class TlbRow:
    """Recent TLB flushes for one reason, all per second; None where unknown.

    Attributes:
        reason: why the kernel flushed.
        flushes: flushes caused by the target itself.
        full_flushes: those of them that flush the whole TLB.
        pages: pages flushed.
        time_s: seconds spent.
        arm_flushes: flushes caused by arming.
        arm_time_s: seconds spent in flushes caused by arming.
    """

    reason: str
    flushes: float
    full_flushes: float | None
    pages: float
    time_s: float | None
    arm_flushes: float | None
    arm_time_s: float | None


@dataclass(frozen=True)
class WriterRow:
    """A writer with its rate in pages per second, and its share of all pages with a known writer."""

    writer: Writer
    pages_per_s: float
    share: float


class History:
    """The latest KEPT rounds."""

    def __init__(self, rounds: Iterable[RoundSummary] = ()) -> None:
        self._rounds: deque[RoundSummary] = deque(rounds, KEPT)

    def add(self, summary: RoundSummary) -> None:
        """Append a round; drop the oldest one if there are more than KEPT."""
        self._rounds.append(summary)

    def __len__(self) -> int:
        return len(self._rounds)

    def copy(self) -> History:
        """Return a copy that later add() calls do not change."""
        return History(self._rounds)

    @property
    def last(self) -> RoundSummary | None:
        """The latest round; None before the first one."""
        return self._rounds[-1] if self._rounds else None

    @property
    def recent(self) -> Sequence[RoundSummary]:
        """The latest MEAN rounds."""
        count = len(self._rounds)
        return [self._rounds[i] for i in range(max(0, count - MEAN), count)]

    def series(self) -> Series:
        """Return the rounds' values."""
        if not self._rounds:
            return Series(np.empty((0, len(COLUMN))))
        return Series(np.stack([r.values for r in self._rounds]))

    def mappings(self) -> MappingTable:
        """Return the recently written mappings."""
        recent = self.recent
        seconds = _seconds(recent)
        parts = [r.written for r in recent if r.written.mappings]
        if not parts or seconds <= 0:
            return _no_mappings()
        sizes = [len(p.pid) for p in parts]
        pid = np.concatenate([p.pid for p in parts])
        start = np.concatenate([p.start for p in parts])
        order = np.lexsort((start, pid))  # stable: a mapping's latest occurrence comes last
        p, s = pid[order], start[order]
        firsts = np.flatnonzero(np.concatenate(([True], (p[1:] != p[:-1]) | (s[1:] != s[:-1]))))
        latest = order[np.append(firsts[1:], len(order)) - 1]
        columns = {n: np.concatenate([getattr(w, n) for w in parts]) for n in _COUNTED}
        sums = {n: np.add.reduceat(c[order], firsts) / seconds for n, c in columns.items()}
        best = np.lexsort((-sums["dirty"], -sums["redirtied"]))
        chosen = latest[best]
        starts = np.cumsum([0, *sizes[:-1]])
        part = np.searchsorted(starts, chosen, side="right") - 1
        return MappingTable(
            parts=tuple(w.mappings for w in parts),
            part=part,
            row=chosen - starts[part],
            pid=pid[chosen],
            start=start[chosen],
            dirty_per_s=sums["dirty"][best],
            redirtied_per_s=sums["redirtied"][best],
            faults_per_s=sums["faults"][best],
            present=columns["present"][chosen],
            seconds=seconds,
        )

    def heat(self) -> HeatMap | None:
        """Return the heat map; None if nothing was written."""
        count = len(self._rounds)
        return heat_map([self._rounds[i] for i in range(max(0, count - HEAT_COLUMNS), count)])

    def tlb(self) -> tuple[TlbRow, ...]:
        """Return recent TLB flushes by reason."""
        recent = self.recent
        seconds = _seconds(recent)
        if seconds <= 0:
            return ()
        reasons = dict.fromkeys(str(row[1]) for r in recent for row in r.tlb)
        found = []
        for reason in reasons:
            rows = [row for r in recent for row in r.tlb if row[1] == reason]

            def rate(column: str, rows: list[tuple[object, ...]] = rows) -> float | None:
                values = [_number(row[TLB_COLUMN[column] - 1]) for row in rows]
                known = [v for v in values if v is not None]
                return sum(known) / seconds if known else None

            found.append(
                TlbRow(
                    reason=reason,
                    flushes=rate("flushes") or 0.0,
                    full_flushes=rate("full_flushes"),
                    pages=rate("pages") or 0.0,
                    time_s=rate("time_s"),
                    arm_flushes=rate("arm_flushes"),
                    arm_time_s=rate("arm_time_s"),
                )
            )
        return tuple(found)

    def writers(self) -> tuple[WriterRow, ...]:
        """Return threads, then stacks, each ordered by recently dirtied pages."""
        recent = self.recent
        seconds = _seconds(recent)
        sums: dict[tuple[int, int, str], int] = {}
        totals = {True: 0, False: 0}
        for w in (w for r in recent for w in r.writers):
            key = (w.pid, w.tid, w.stack)
            sums[key] = sums.get(key, 0) + w.pages
            totals[bool(w.stack)] += w.pages
        rows = [
            WriterRow(Writer(*key, pages=n), n / seconds, n / max(totals[bool(key[2])], 1))
            for key, n in sums.items()
            if seconds > 0
        ]
        return tuple(sorted(rows, key=lambda r: (bool(r.writer.stack), -r.pages_per_s)))

    def observed(self) -> Observations | None:
        """Return the model's input; None before the first round."""
        rounds = list(self._rounds)
        if not rounds:
            return None
        series = Series(np.stack([r.values for r in rounds]))
        known = np.nan_to_num(series.values)
        values = {name: known[:, i] for name, i in COLUMN.items()}
        dirty = np.nan_to_num(series.once("dirty"))
        points = _joined([r.points for r in rounds])
        return Observations(
            page_size=PAGE_SIZE,
            number=values["round"].astype(np.int64),
            duration_s=values["duration_s"],
            arm_s=values["arm_s"],
            present=np.nan_to_num(series.once("present")),
            dirty=dirty,
            redirtied=np.nan_to_num(series.once("redirtied")),
            # the share of them is what counts
            missed=values["missed_pages"] * dirty / np.maximum(values["dirty_pages"], 1.0),
            points=points.chosen(points.number >= rounds[0].number),
            classes=CLASSES,
            mappings=self._hottest(),
            boundary_s=series["boundary_s"],
        )

    def _hottest(self) -> tuple[MappingRate, ...]:
        table = self.mappings()
        order = np.argsort(-table.dirty_per_s, kind="stable")[:_MAX_NAMED]
        return tuple(
            MappingRate.of(
                m.start,
                m.path,
                m.mapping_class,
                int(table.pid[i]),
                float(table.dirty_per_s[i]),
            )
            for i in order.tolist()
            for m in [table[i]]
        )


def _no_mappings() -> MappingTable:
    none, floats = np.empty(0, np.int64), np.empty(0)
    return MappingTable(
        parts=(),
        part=none,
        row=none,
        pid=none,
        start=none.astype(np.uint64),
        dirty_per_s=floats,
        redirtied_per_s=floats,
        faults_per_s=floats,
        present=none,
        seconds=0.0,
    )


def _seconds(rounds: Sequence[RoundSummary]) -> float:
    return sum(r["duration_s"] for r in rounds)


def _number(value: object) -> float | None:
    if value is None or value == "":
        return None
    number = float(str(value))
    return None if math.isnan(number) else number


def _joined(parts: Sequence[Points]) -> Points:
    used = [p for p in parts if len(p.number)]
    if not used:
        return Points.none()
    return Points(
        number=np.concatenate([p.number for p in used]),
        rounds=np.concatenate([p.rounds for p in used]),
        mapping_class=np.concatenate([p.mapping_class for p in used]),
        elapsed_s=np.concatenate([p.elapsed_s for p in used]),
        dirty=np.concatenate([p.dirty for p in used]),
        redirtied=np.concatenate([p.redirtied for p in used]),
        raced=np.concatenate([p.raced for p in used]),
    )
