"""Streaks of dirty rounds: the stayed_dirty_pages columns, and runs.csv."""

from __future__ import annotations

from redirty.collector import files
from redirty.collector.folders import Folder
from redirty.collector.metrics.streaks import Lengths, Streaks, length_classes
from redirty.collector.pageset import PageSet, empty
from redirty.collector.recording import columns
from redirty.collector.tracking.rounds import Round, SpaceRound

Key = tuple[int, int]  # process and address space


class StreakFiles:
    """Tracks pages that stay dirty from one round to the next, by address space."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._streaks: dict[Key, Streaks] = {}
        self._lengths: dict[int, Lengths] = {}  # of streaks that ended, by process
        self._stayed: dict[Key, PageSet] = {}
        self._fresh: dict[Key, PageSet] = {}
        self._rounds = 0

    def follow(self, result: Round) -> None:
        """Compare a round with the previous one."""
        self._rounds += 1
        there = {(space.pid, space.space): space for space in result.spaces}
        for key in self._streaks.keys() - there.keys():
            self._streaks.pop(key).follow(empty(), self._ended(key[0]))
        self._stayed, self._fresh = {}, {}
        for key, space in there.items():
            streaks = self._streaks.setdefault(key, Streaks())
            self._stayed[key], self._fresh[key] = streaks.follow(space.dirty, self._ended(key[0]))

    def _ended(self, pid: int) -> Lengths:
        return self._lengths.setdefault(pid, Lengths())

    def stayed(self, space: SpaceRound) -> PageSet | None:
        """Return the dirty pages that were dirty in the previous round, too; None in the first round."""
        return self._stayed[space.pid, space.space] if self._rounds > 1 else None

    def stayed_pages(self) -> int | None:
        """Return the number of pages that stayed dirty in all address spaces; None in the first round."""
        return sum(map(len, self._stayed.values())) if self._rounds > 1 else None

    def fresh(self, space: SpaceRound) -> PageSet:
        """Return the dirty pages that were not dirty in the previous round."""
        return self._fresh[space.pid, space.space]

    def write_runs(self) -> None:
        """Replace runs.csv. Raises: RedirtyError when that fails."""
        rows: list[tuple[object, ...]] = [columns.RUNS]
        for pid, ended in sorted(self._lengths.items()):
            ongoing = Lengths()
            for (owner, _), streaks in self._streaks.items():
                if owner == pid:
                    streaks.add_ongoing(ongoing)
            for (shortest, longest), n, on in zip(
                length_classes(), ended.counts.tolist(), ongoing.counts.tolist(), strict=True
            ):
                if n or on:
                    rows.append((pid, shortest, longest, n, on))
        files.replace(self._folder, "runs.csv", [files.csv_bytes(rows)])
