"""The rounds of a recording, as facts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from redirty.collector.analyze import load
from redirty.collector.analyze.observations import layout_of
from redirty.collector.analyze.writers import round_of
from redirty.collector.errors import RedirtyError
from redirty.collector.linux.maps import CLASSES, Mapping
from redirty.collector.model.observations import ALL, Points
from redirty.collector.pageset import U64
from redirty.collector.recording.columns import ROUNDS, TLB
from redirty.tui.snapshots.round_summary import (
    I64,
    PID_SHIFT,
    WORD_SHIFT,
    Floats,
    PageCounts,
    RoundSummary,
    Writer,
    WrittenMappings,
    folded,
)

if TYPE_CHECKING:
    import pandas as pd

_EVENTS_BYTES = 128 << 20  # of a larger file of events, pages.csv stands in
_NEEDED = ROUNDS[: ROUNDS.index("new_pages") + 1]  # later columns are not in each recording
_TOP = 40  # threads, and stacks, of a round


def first_rounds(directory: Path) -> list[RoundSummary]:
    """rounds.csv alone, without the library that reads everything, which takes longer to import than to
    paint the screen. Empty where that file is not as it should be: LoadedRecording tells what is wrong."""
    nowhere = folded(np.empty(0, np.uint64), np.empty(0, np.int64))
    try:
        with (directory / "rounds.csv").open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
            at = {name: head.index(name) for name in ROUNDS if name in head or name in _NEEDED}
            values = [
                [float(row[at[n]]) if n in at and row[at[n]] else np.nan for n in ROUNDS]
                for row in rows
            ]
    except (OSError, ValueError, IndexError, csv.Error):
        return []
    number = ROUNDS.index("round")
    return [
        RoundSummary(
            int(row[number]),
            np.array(row),
            WrittenMappings.none(),
            (),
            Points.none(),
            nowhere,
            None,
        )
        for row in values
    ]


class LoadedRecording:
    """A recording read as a whole. facts: by round, ascending. estimated: where pages were dirty is
    known by mapping, and within one made up from pages.csv. writers: events tell who.
    layout: of its memory, when zero pages were counted.

    Errors: RedirtyError; also when no round is complete.
    """

    def __init__(self, directory: Path) -> None:
        self.meta = load.load_meta(directory)
        rounds = load.load_rounds(directory)
        if rounds.empty:
            raise RedirtyError(
                f"{directory} has no complete round: nothing to show; record for longer"
            )
        numbers = rounds["round"].to_numpy(np.int64)
        values = rounds[list(ROUNDS)].to_numpy(np.float64)
        events = _events(directory)
        self.estimated = events is None
        self.writers = events is not None
        if events is None:
            places = _estimated(load.load_pages(directory), numbers, rounds["dirty_pages"])
            writers: list[tuple[Writer, ...]] = [()] * len(numbers)
        else:
            at = np.searchsorted(numbers, round_of(events["time_s"].to_numpy(np.float64), rounds))
            known = round_of(events["time_s"].to_numpy(np.float64), rounds) >= 0
            places = _exact(events[known], at[known], len(numbers))
            writers = _writers(directory, events[known], at[known], len(numbers))
        written = _written(load.load_mappings(directory), numbers)
        tlb = _tlb(load.load_tlb(directory), numbers)
        points = _points(load.load_curves(directory), numbers)
        self.facts = [
            RoundSummary(
                int(n), values[i], written[i], tlb[i], points[i], places[i], None, writers[i]
            )
            for i, n in enumerate(numbers.tolist())
        ]
        start_s, duration_s = (rounds[c].to_numpy(np.float64) for c in ("start_s", "duration_s"))
        self.ends_s: Floats = start_s + duration_s
        self.begin_s = float(start_s[0])
        self.layout = layout_of(load.load_zeros(directory))


def _bounds(of: I64, numbers: I64) -> list[tuple[int, int]]:
    """Where the rows of each round lie in rows sorted by round."""
    first = np.searchsorted(of, numbers, side="left").tolist()
    last = np.searchsorted(of, numbers, side="right").tolist()
    return list(zip(first, last, strict=True))


def _written(frame: pd.DataFrame, numbers: I64) -> list[WrittenMappings]:
    frame = frame[frame["dirty_pages"] > 0].sort_values("round", kind="stable")
    mappings = [
        Mapping(int(start), int(end), str(perms), str(path))
        for start, end, perms, path in zip(
            *(frame[c].tolist() for c in ("start", "end", "perms", "path")), strict=True
        )
    ]
    names = ("pid", "present_pages", "dirty_pages", "redirtied_pages", "write_faults")
    columns = [frame[c].fillna(0).to_numpy(np.int64) for c in names]
    start = frame["start"].to_numpy(np.uint64)
    pid, *counts = columns
    return [
        WrittenMappings(tuple(mappings[a:b]), pid[a:b], start[a:b], *(c[a:b] for c in counts))
        for a, b in _bounds(frame["round"].to_numpy(np.int64), numbers)
    ]


def _tlb(frame: pd.DataFrame, numbers: I64) -> list[tuple[tuple[object, ...], ...]]:
    frame = frame.sort_values("round", kind="stable")
    rows = list(frame[list(TLB[1:])].itertuples(index=False, name=None))
    return [tuple(rows[a:b]) for a, b in _bounds(frame["round"].to_numpy(np.int64), numbers)]


def _points(frame: pd.DataFrame, numbers: I64) -> list[Points]:
    """By the round that they end with."""
    codes = {"": ALL, **{name: i for i, name in enumerate(CLASSES)}}
    first, rounds = (frame[c].to_numpy(np.int64) for c in ("round", "rounds"))
    ends = first + np.maximum(rounds, 1) - 1
    order = np.argsort(ends, kind="stable")
    every = Points(
        first,
        rounds,
        np.array([codes[name] for name in frame["mapping_class"]], np.int64),
        *(frame[c].to_numpy(np.float64) for c in ("elapsed_s", "dirty_pages", "redirtied_pages")),
    )
    columns = [c[order] for c in vars(every).values()]
    return [Points(*(c[a:b] for c in columns)) for a, b in _bounds(ends[order], numbers)]


# ---- where, and who ----


def _events(directory: Path) -> pd.DataFrame | None:
    """events.parquet, if there is one that is not too large to read as a whole."""
    file = directory / "events.parquet"
    if not file.exists() or file.stat().st_size > _EVENTS_BYTES:
        return None
    return load.load_events(directory)


def _keys(pid: I64, address: U64) -> U64:
    found: U64 = (pid.astype(np.uint64) << np.uint64(PID_SHIFT)) | (
        address >> np.uint64(WORD_SHIFT)
    )
    return found


def _exact(events: pd.DataFrame, at: I64, count: int) -> list[PageCounts]:
    """Distinct pages by place, of each round. at: (n,) the round's index of each event."""
    page = events["address"].to_numpy(np.uint64) >> np.uint64(12)
    pid = events["pid"].to_numpy(np.int64)
    order = np.lexsort((page, pid, at))
    at, pid, page = at[order], pid[order], page[order]
    same = (at[1:] == at[:-1]) & (pid[1:] == pid[:-1]) & (page[1:] == page[:-1])
    once = np.concatenate(([True], ~same))[: len(at)]
    at, keys = at[once], _keys(pid[once], page[once] << np.uint64(12))
    return [folded(keys[a:b], np.ones(b - a, np.int64)) for a, b in _bounds(at, np.arange(count))]


def _estimated(pages: pd.DataFrame, numbers: I64, dirty: pd.Series[Any]) -> list[PageCounts]:
    """Each page is taken to be dirty, between the first and the last round in which it was, as often as
    it was on average; each round's sum is right."""
    if pages.empty:
        return [folded(np.empty(0, np.uint64), np.empty(0, np.int64))] * len(numbers)
    every = _keys(pages["pid"].to_numpy(np.int64), pages["address"].to_numpy(np.uint64))
    coarse = folded(every, np.ones(len(every), np.int64))
    own = (every >> np.uint64(coarse.shift)) << np.uint64(coarse.shift)
    place = np.searchsorted(coarse.keys, own)
    first = np.searchsorted(numbers, pages["first_round"].to_numpy(np.int64))
    last = np.searchsorted(numbers, pages["last_round"].to_numpy(np.int64))
    weight = pages["rounds_dirty"].to_numpy(np.float64) / (last - first + 1)
    steps = np.zeros((len(numbers) + 1, len(coarse.keys)))
    np.add.at(steps, (first, place), weight)
    np.add.at(steps, (np.minimum(last + 1, len(numbers)), place), -weight)
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
    """Threads, and with --stacks stacks, by the distinct pages they dirtied in each round."""
    pid = events["pid"].to_numpy(np.int64)
    page = (events["address"].to_numpy(np.uint64) >> np.uint64(12)).astype(np.int64)
    threads = _counted(at, pid, events["tid"].to_numpy(np.int64), page)
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
        for i, p, stack, n in _counted(at[known], pid[known], ids, page[known]):
            found[i].append(Writer(p, 0, texts.get((p, stack), "[stack unknown]"), n))
    return [tuple(rows) for rows in found]


def _counted(at: I64, pid: I64, who: I64, page: I64) -> list[tuple[int, int, int, int]]:
    """(round's index, pid, who, distinct pages), the first _TOP of each round."""
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
    begins = np.searchsorted(groups[:, 0], groups[:, 0])
    chosen = np.arange(len(groups)) - begins < _TOP
    return [
        (int(i), int(p), int(w), int(n))
        for (i, p, w), n in zip(groups[chosen].tolist(), counts[chosen].tolist(), strict=True)
    ]
