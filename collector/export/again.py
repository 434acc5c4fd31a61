"""Pages that stay dirty from one round to the next, and distinct pages over several rounds: what
becomes columns and rows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from redirty.collector.bitmap import PageSet, empty
from redirty.collector.export import columns, files
from redirty.collector.rates import PageCounts
from redirty.collector.rounds import Round, SpaceRound
from redirty.collector.runs import Streaks, WorkingSet, no_streaks

Key = tuple[int, int]  # process and address space


class Again:
    """Follows the rounds of a recording. Use: begin() and then end() in each.

    Errors: RedirtyError when working_set.csv cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "runs.csv"
        self._windows = files.CsvFile(directory / "working_set.csv", columns.WORKING_SET)
        self._working_set = WorkingSet()
        self._before: dict[Key, Streaks] = {}
        self._now: dict[Key, Streaks] = {}
        self._stayed: dict[Key, PageSet] | None = None
        self._next = 0  # the number of the round to come

    def begin(self, result: Round) -> None:
        """Compares a round with the one before."""
        stayed = {}
        self._now = {}
        for space in result.spaces:
            key = (space.pid, space.space)
            before = self._before.get(key, no_streaks())
            stayed[key], self._now[key] = before.follow(space.dirty)
        # in the first one nobody knows
        self._stayed = stayed if self._next else None

    def stayed(self, space: SpaceRound) -> PageSet | None:
        """Of its dirty pages those that were dirty in the round before, too; None: not known."""
        return None if self._stayed is None else self._stayed[space.pid, space.space]

    def stayed_pages(self) -> int | None:
        """How many these are, in all address spaces."""
        return None if self._stayed is None else sum(map(len, self._stayed.values()))

    def fresh(self, space: SpaceRound) -> PageSet:
        """Of its dirty pages the others."""
        return self._now[space.pid, space.space].fresh

    def end(self, number: int, pages: dict[int, PageCounts]) -> None:
        """After the round's pages were counted, by process. Errors: RedirtyError (disk full)."""
        for key, before in self._before.items():
            after = self._now.get(key)
            pages[key[0]].follow(number, before, empty() if after is None else after.dirty)
        self._before, self._next = self._now, number + 1
        windows = self._working_set.add({key: runs.dirty for key, runs in self._now.items()})
        if windows:
            rows = ((w.first_round, w.rounds, w.pid, w.dirty_pages) for w in windows)
            self._windows.append(rows)

    def write_runs(self, pages: dict[int, PageCounts]) -> None:
        """Replaces runs.csv. Errors: RedirtyError."""
        rows: list[tuple[object, ...]] = [columns.RUNS]
        for pid, counts in sorted(pages.items()):
            still = [runs for (of, _), runs in self._before.items() if of == pid]
            ended, going_on = counts.lengths(self._next, still)
            for length in np.flatnonzero(ended + going_on).tolist():
                rows.append((pid, length, int(ended[length]), int(going_on[length])))
        files.replace(self._path, [files.csv_bytes(rows)])

    def close(self) -> None:
        """Done."""
        self._windows.close()
