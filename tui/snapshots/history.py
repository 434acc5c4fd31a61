"""The latest rounds, and what follows from them: rates, mappings, heat map, TLB, what the model takes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from redirty.collector.linux.maps import CLASSES, Mapping
from redirty.collector.model.observations import MappingRate, Observations, Points
from redirty.collector.pageset import U64
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
MEAN = 5  # rounds that the rate of a mapping, of a writer and of flushes is the mean of
_NAMED = 8  # mappings that the model may name
_COUNTED = ("present", "dirty", "redirtied", "faults")


@dataclass(frozen=True, eq=False)
class Series:
    """Columns of rounds.csv by round: (n,) each, ascending, NaN where not known."""

    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, column: str) -> Floats:
        """A column."""
        found: Floats = self.values[:, COLUMN[column]]
        return found

    def per_s(self, column: str) -> Floats:
        """A column, for each second."""
        return self[column] / np.maximum(self["duration_s"], 1e-9)


@dataclass(frozen=True, eq=False)
class MappingTable:
    """Mappings written lately, (n,) each, the most re-dirtied first. Rates in pages per second, over
    `seconds`; present: pages. parts, part, row: where each was seen last; table[i] gives it."""

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
        """The mapping in a row: there may be 60,000, of which a screen shows 40."""
        return self.parts[int(self.part[i])][int(self.row[i])]


@dataclass(frozen=True)
class TlbRow:
    """Flushes for one reason, lately, for each second: the target's own, and what arming caused;
    None where not known."""

    reason: str
    flushes: float
    full_flushes: float | None
    pages: float
    time_s: float | None
    arm_flushes: float | None
    arm_time_s: float | None


@dataclass(frozen=True)
class WriterRow:
    """Who dirtied pages lately, in pages per second and as a share of all that is known."""

    writer: Writer
    pages_per_s: float
    share: float


class History:
    """The latest rounds: bounded, however long it goes on."""

    def __init__(self, facts: Iterable[RoundSummary] = ()) -> None:
        self._facts: deque[RoundSummary] = deque(facts, KEPT)

    def add(self, facts: RoundSummary) -> None:
        """One more round."""
        self._facts.append(facts)

    def __len__(self) -> int:
        return len(self._facts)

    def copy(self) -> History:
        """As it is now; rounds that are added later are not in it."""
        return History(self._facts)

    @property
    def last(self) -> RoundSummary | None:
        """The latest round."""
        return self._facts[-1] if self._facts else None

    @property
    def lately(self) -> Sequence[RoundSummary]:
        """The rounds that rates are the mean of."""
        count = len(self._facts)
        return [self._facts[i] for i in range(max(0, count - MEAN), count)]

    def series(self) -> Series:
        """The rounds' values."""
        if not self._facts:
            return Series(np.empty((0, len(COLUMN))))
        return Series(np.stack([f.values for f in self._facts]))

    def mappings(self) -> MappingTable:
        """Mappings written lately."""
        recent = self.lately
        seconds = _seconds(recent)
        parts = [f.written for f in recent if f.written.mappings]
        if not parts or seconds <= 0:
            none, floats = np.empty(0, np.int64), np.empty(0)
            return MappingTable(
                (), none, none, none, none.astype(np.uint64), floats, floats, floats, none, 0.0
            )
        sizes = [len(p.pid) for p in parts]
        pid = np.concatenate([p.pid for p in parts])
        start = np.concatenate([p.start for p in parts])
        order = np.lexsort((start, pid))  # stable: of one mapping the latest comes last
        p, s = pid[order], start[order]
        firsts = np.flatnonzero(np.concatenate(([True], (p[1:] != p[:-1]) | (s[1:] != s[:-1]))))
        latest = order[np.append(firsts[1:], len(order)) - 1]
        columns = {n: np.concatenate([getattr(w, n) for w in parts]) for n in _COUNTED}
        sums = {n: np.add.reduceat(c[order], firsts) / seconds for n, c in columns.items()}
        best = np.lexsort((-sums["dirty"], -sums["redirtied"]))
        chosen = latest[best]
        begins = np.cumsum([0, *sizes[:-1]])
        part = np.searchsorted(begins, chosen, side="right") - 1
        return MappingTable(
            tuple(w.mappings for w in parts),
            part,
            chosen - begins[part],
            pid[chosen],
            start[chosen],
            sums["dirty"][best],
            sums["redirtied"][best],
            sums["faults"][best],
            columns["present"][chosen],
            seconds,
        )

    def heat(self) -> HeatMap | None:
        """Addresses by time; None when nothing was written."""
        count = len(self._facts)
        return heat_map([self._facts[i] for i in range(max(0, count - HEAT_COLUMNS), count)])

    def tlb(self) -> tuple[TlbRow, ...]:
        """Flushes lately, by reason."""
        recent = self.lately
        seconds = _seconds(recent)
        if seconds <= 0:
            return ()
        reasons = dict.fromkeys(str(row[1]) for f in recent for row in f.tlb)
        found = []
        for reason in reasons:
            rows = [row for f in recent for row in f.tlb if row[1] == reason]

            def rate(column: str, rows: list[tuple[object, ...]] = rows) -> float | None:
                values = [_number(row[TLB_COLUMN[column] - 1]) for row in rows]
                known = [v for v in values if v is not None]
                return sum(known) / seconds if known else None

            found.append(
                TlbRow(
                    reason,
                    rate("flushes") or 0.0,
                    rate("full_flushes"),
                    rate("pages") or 0.0,
                    rate("time_s"),
                    rate("arm_flushes"),
                    rate("arm_time_s"),
                )
            )
        return tuple(found)

    def writers(self) -> tuple[WriterRow, ...]:
        """Threads and stacks lately, those that dirty most first."""
        recent = self.lately
        seconds = _seconds(recent)
        sums: dict[tuple[int, int, str], int] = {}
        totals = {True: 0, False: 0}
        for w in (w for f in recent for w in f.writers):
            key = (w.pid, w.tid, w.stack)
            sums[key] = sums.get(key, 0) + w.pages
            totals[bool(w.stack)] += w.pages
        rows = [
            WriterRow(Writer(*key, pages=n), n / seconds, n / max(totals[bool(key[2])], 1))
            for key, n in sums.items()
            if seconds > 0
        ]
        return tuple(sorted(rows, key=lambda r: (bool(r.writer.stack), -r.pages_per_s)))

    def observed(self, first: int = 0) -> Observations | None:
        """As the model takes it, from a round on; None when there is none yet."""
        facts = [f for f in self._facts if f.number >= first]
        if not facts:
            return None
        known = np.nan_to_num(np.stack([f.values for f in facts]))
        values = {name: known[:, i] for name, i in COLUMN.items()}
        points = _joined([f.points for f in facts])
        return Observations(
            page_size=4096,
            number=values["round"].astype(np.int64),
            duration_s=values["duration_s"],
            arm_s=values["arm_s"],
            present=values["present_pages"],
            dirty=values["dirty_pages"],
            redirtied=values["redirtied_pages"],
            missed=values["missed_pages"],
            points=points.chosen(points.number >= facts[0].number),
            classes=CLASSES,
            mappings=self._kept(),
        )

    def _kept(self) -> tuple[MappingRate, ...]:
        table = self.mappings()
        order = np.argsort(-table.dirty_per_s, kind="stable")[:_NAMED]
        return tuple(
            MappingRate(
                f"{m.start:#x} {m.path or '(anonymous)'}",
                m.mapping_class,
                int(table.pid[i]),
                float(table.dirty_per_s[i]),
            )
            for i in order.tolist()
            for m in [table[i]]
        )


def _seconds(facts: Sequence[RoundSummary]) -> float:
    return sum(f["duration_s"] for f in facts)


def _number(value: object) -> float | None:
    if value is None or value == "":
        return None
    number = float(str(value))
    return None if math.isnan(number) else number


def _joined(parts: Sequence[Points]) -> Points:
    used = [p for p in parts if len(p.number)]
    if not used:
        return Points.none()
    names = ("number", "rounds", "mapping_class", "elapsed_s", "dirty", "redirtied")
    return Points(*(np.concatenate([getattr(p, n) for p in used]) for n in names))
