"""Reads a recording into summaries of its rounds."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from redirty.collector.analyze import counted_once, load
from redirty.collector.analyze.observations import observe
from redirty.collector.analyze.schema import TABLES, Kind, Number
from redirty.collector.analyze.tables import parquet_files, read_csv_bytes
from redirty.collector.analyze.writers import round_of
from redirty.collector.errors import RedirtyError, why
from redirty.collector.linux.maps import CLASSES, Mapping
from redirty.collector.model.observations import ALL, Points
from redirty.collector.pageset import PAGE_SHIFT, U64
from redirty.collector.recording.columns import ROUNDS, TLB
from redirty.tui.snapshots.round_summary import (
    BLOCK_SHIFT,
    I64,
    PID_SHIFT,
    Floats,
    PageCounts,
    RoundSummary,
    Writer,
    WrittenMappings,
    fold,
)

if TYPE_CHECKING:
    import pandas as pd

_MAX_EVENTS_BYTES = 128 << 20  # beyond, pages.csv is used instead of events.parquet
_REQUIRED = ROUNDS[: ROUNDS.index("new_pages") + 1]  # some recordings lack later columns
_MAX_WRITERS = 40  # threads, and stacks, of a round


def first_rounds(directory: Path) -> list[RoundSummary]:
    """Read rounds.csv alone, without pandas, which takes longer to import than painting the screen.

    Return an empty list if the file is damaged: LoadedRecording reports what is wrong.
    """
    no_pages = fold(np.empty(0, np.uint64), np.empty(0, np.int64))
    try:
        text = read_csv_bytes(directory / "rounds.csv").decode("utf-8")
        head, *rows = csv.reader(io.StringIO(text, newline=""))
        at = {name: head.index(name) for name in ROUNDS if name in head or name in _REQUIRED}
        values = [
            [float(row[at[n]]) if n in at and row[at[n]] else np.nan for n in ROUNDS]
            for row in rows
        ]
        numbers = [int(row[ROUNDS.index("round")]) for row in values]
        limits = [TABLES["rounds"].kinds[n] for n in ROUNDS]
        if not all(_fits(v, k) for row in values for v, k in zip(row, limits, strict=True)):
            return []
    except (OSError, ValueError, OverflowError, IndexError, csv.Error):
        return []
    return [
        RoundSummary(
            number=number,
            values=np.array(row),
            written=WrittenMappings.none(),
            tlb=(),
            points=Points.none(),
            page_counts=no_pages,
        )
        for number, row in zip(numbers, values, strict=True)
    ]


def _fits(value: float, kind: Kind) -> bool:
    """Return whether a value is unknown, or in the range of its column."""
    return not isinstance(kind, Number) or math.isnan(value) or kind.least <= value <= kind.most


class LoadedRecording:
    """A recording read as a whole.

    Attributes:
        meta: meta.json.
        has_events: events.parquet was read, so that dirty pages and writers are exact; otherwise the
            heat map is estimated from pages.csv, and writers are unknown.
        rounds: ascending.
        start_s: start of the first round.
        ends_s: (n,) end of each round.
        observed: the model's input, that of `redirty predict`.

    Raises:
        RedirtyError: the recording is damaged, or has no complete round.
    """

    def __init__(self, directory: Path) -> None:
        self.meta = load.load_meta(directory)
        rounds = load.load_rounds(directory)
        if rounds.empty:
            raise RedirtyError(f"{directory} has no complete round; record for longer")
        numbers = rounds["round"].to_numpy(np.int64)
        values = rounds[list(ROUNDS)].to_numpy(np.float64)
        events = _events(directory)
        self.has_events = events is not None
        if events is None:
            page_counts = _estimate(load.load_pages(directory), numbers, rounds["dirty_pages"])
            writers: list[tuple[Writer, ...]] = [()] * len(numbers)
        else:
            at = np.searchsorted(numbers, round_of(events["time_s"].to_numpy(np.float64), rounds))
            known = round_of(events["time_s"].to_numpy(np.float64), rounds) >= 0
            page_counts = _count(events[known], at[known], len(numbers))
            writers = _writers(directory, events[known], at[known], len(numbers))
        written = _written(load.load_mappings(directory), numbers)
        tlb = _tlb(load.load_tlb(directory), numbers)
        points = _points(load.load_curves(directory), numbers)
        self.rounds = [
            RoundSummary(
                number=int(n),
                values=values[i],
                written=written[i],
                tlb=tlb[i],
                points=points[i],
                page_counts=page_counts[i],
                writers=writers[i],
            )
            for i, n in enumerate(numbers.tolist())
        ]
        start_s, duration_s = (rounds[c].to_numpy(np.float64) for c in ("start_s", "duration_s"))
        self.ends_s: Floats = start_s + duration_s
        self.start_s = float(start_s[0])
        self.observed = observe(directory, self.meta)


def _bounds(column: I64, numbers: I64) -> list[tuple[int, int]]:
    """Return the (start, end) rows of each round in a table sorted by round."""
    first = np.searchsorted(column, numbers, side="left").tolist()
    last = np.searchsorted(column, numbers, side="right").tolist()
    return list(zip(first, last, strict=True))


def _written(frame: pd.DataFrame, numbers: I64) -> list[WrittenMappings]:
    frame = frame[frame["dirty_pages"] > 0].sort_values("round", kind="stable")
    mappings = [
        Mapping(int(start), int(end), str(perms), str(path))
        for start, end, perms, path in frame[["start", "end", "perms", "path"]].itertuples(
            index=False, name=None
        )
    ]
    start = frame["start"].to_numpy(np.uint64)
    names = ("pid", "present_pages", "dirty_pages", "redirtied_pages", "write_faults")
    pid, present, dirty, redirtied, faults = (frame[c].fillna(0).to_numpy(np.int64) for c in names)
    return [
        WrittenMappings(
            mappings=tuple(mappings[a:b]),
            pid=pid[a:b],
            start=start[a:b],
            present=present[a:b],
            dirty=dirty[a:b],
            redirtied=redirtied[a:b],
            faults=faults[a:b],
        )
        for a, b in _bounds(frame["round"].to_numpy(np.int64), numbers)
    ]


def _tlb(frame: pd.DataFrame, numbers: I64) -> list[tuple[tuple[object, ...], ...]]:
    frame = frame.sort_values("round", kind="stable")
    rows = list(frame[list(TLB[1:])].itertuples(index=False, name=None))
    return [tuple(rows[a:b]) for a, b in _bounds(frame["round"].to_numpy(np.int64), numbers)]


def _points(frame: pd.DataFrame, numbers: I64) -> list[Points]:
    """Return points of the write curves by the round they end with."""
    codes = {"": ALL, **{name: i for i, name in enumerate(CLASSES)}}
    first, rounds = (frame[c].to_numpy(np.int64) for c in ("round", "rounds"))
    ends = first + np.maximum(rounds, 1) - 1
    order = np.argsort(ends, kind="stable")
    classes = np.array([codes[name] for name in frame["mapping_class"]], np.int64)[order]
    first, rounds = first[order], rounds[order]
    pages = counted_once.column(frame, "dirty")
    again, raced_pages = counted_once.column(frame, "redirtied"), counted_once.raced(frame)
    columns = (frame["elapsed_s"], pages, again, raced_pages)
    elapsed_s, dirty, redirtied, raced = (c.to_numpy(np.float64)[order] for c in columns)
    return [
        Points(
            number=first[a:b],
            rounds=rounds[a:b],
            mapping_class=classes[a:b],
            elapsed_s=elapsed_s[a:b],
            dirty=dirty[a:b],
            redirtied=redirtied[a:b],
            raced=raced[a:b],
        )
        for a, b in _bounds(ends[order], numbers)
    ]


# ---- dirty pages and writers ----


def _events(directory: Path) -> pd.DataFrame | None:
    """Read events.parquet; None if there is none, or it is too large to read as a whole."""
    file = directory / "events.parquet"
    if file not in parquet_files(directory, "events"):
        return None
    try:
        too_large = file.stat().st_size > _MAX_EVENTS_BYTES
    except OSError as e:
        raise RedirtyError(f"cannot read {file}: {why(e)}") from None
    return None if too_large else load.load_events(directory)


def _keys(pid: I64, address: U64) -> U64:
    found: U64 = (pid.astype(np.uint64) << np.uint64(PID_SHIFT)) | (
        address >> np.uint64(BLOCK_SHIFT)
    )
    return found


def _count(events: pd.DataFrame, at: I64, count: int) -> list[PageCounts]:
    """Count each round's distinct pages by block. at: (n,) index of each event's round."""
    page = events["address"].to_numpy(np.uint64) >> np.uint64(PAGE_SHIFT)
    pid = events["pid"].to_numpy(np.int64)
    order = np.lexsort((page, pid, at))
    at, pid, page = at[order], pid[order], page[order]
    same = (at[1:] == at[:-1]) & (pid[1:] == pid[:-1]) & (page[1:] == page[:-1])
    once = np.concatenate(([True], ~same))[: len(at)]
    at, keys = at[once], _keys(pid[once], page[once] << np.uint64(PAGE_SHIFT))
    return [fold(keys[a:b], np.ones(b - a, np.int64)) for a, b in _bounds(at, np.arange(count))]


def _estimate(pages: pd.DataFrame, numbers: I64, dirty: pd.Series[Any]) -> list[PageCounts]:
    """Estimate each round's dirty pages by block from pages.csv.

    Each page is assumed to be dirty at its average rate between the first and the last round in which
    it was; the sum over each round is exact.
    """
    if pages.empty:
        return [fold(np.empty(0, np.uint64), np.empty(0, np.int64))] * len(numbers)
    every = _keys(pages["pid"].to_numpy(np.int64), pages["address"].to_numpy(np.uint64))
    coarse = fold(every, np.ones(len(every), np.int64))
    own = (every >> np.uint64(coarse.shift)) << np.uint64(coarse.shift)
    block = np.searchsorted(coarse.keys, own)
    first = np.searchsorted(numbers, pages["first_round"].to_numpy(np.int64))
    last = np.searchsorted(numbers, pages["last_round"].to_numpy(np.int64))
    weight = pages["rounds_dirty"].to_numpy(np.float64) / (last - first + 1)
    steps = np.zeros((len(numbers) + 1, len(coarse.keys)))
    np.add.at(steps, (first, block), weight)
    np.add.at(steps, (np.minimum(last + 1, len(numbers)), block), -weight)
    likely = np.cumsum(steps, axis=0)[:-1]
    likely *= (dirty.to_numpy(np.float64) / np.maximum(likely.sum(axis=1), 1e-9))[:, None]
    found = []
    for row in likely:
        there = row >= 0.5
        found.append(
            PageCounts(coarse.keys[there], np.rint(row[there]).astype(np.int64), coarse.shift)
        )
    return found


def _writers(
    directory: Path, events: pd.DataFrame, at: I64, count: int
) -> list[tuple[Writer, ...]]:
    """Return each round's threads, and with --stacks its stacks, by the distinct pages they dirtied."""
    pid = events["pid"].to_numpy(np.int64)
    page = (events["address"].to_numpy(np.uint64) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    threads = _distinct_pages(at, pid, events["tid"].to_numpy(np.int64), page)
    found: list[list[Writer]] = [[] for _ in range(count)]
    for i, p, tid, n in threads:
        found[i].append(Writer(p, tid, "", n))
    names = load.load_stacks(directory)
    if names is not None:
        texts = {
            (int(p), int(s)): str(text)
            for p, s, text in names.dropna(subset=["stack_id"])[
                ["pid", "stack_id", "stack"]
            ].itertuples(index=False)
        }
        known = events["stack_id"].notna().to_numpy()
        ids = events["stack_id"][known].to_numpy(np.int64)
        for i, p, stack, n in _distinct_pages(at[known], pid[known], ids, page[known]):
            found[i].append(Writer(p, 0, texts.get((p, stack), "[stack unknown]"), n))
    return [tuple(rows) for rows in found]


def _distinct_pages(at: I64, pid: I64, who: I64, page: I64) -> list[tuple[int, int, int, int]]:
    """Return (round's index, pid, who, distinct pages) of the first _MAX_WRITERS of each round."""
    order = np.lexsort((page, who, pid, at))
    rows = np.stack([c[order] for c in (at, pid, who, page)], axis=1)
    if len(rows) == 0:
        return []
    new_page = np.concatenate(([True], (rows[1:] != rows[:-1]).any(axis=1)))
    rows = rows[new_page][:, :3]
    starts = np.flatnonzero(np.concatenate(([True], (rows[1:] != rows[:-1]).any(axis=1))))
    counts = np.diff(starts, append=len(rows))
    groups = rows[starts]
    best = np.lexsort((-counts, groups[:, 0]))
    groups, counts = groups[best], counts[best]
    rank = np.arange(len(groups)) - np.searchsorted(groups[:, 0], groups[:, 0])
    chosen = rank < _MAX_WRITERS
    return [
        (int(i), int(p), int(w), int(n))
        for (i, p, w), n in zip(groups[chosen].tolist(), counts[chosen].tolist(), strict=True)
    ]
