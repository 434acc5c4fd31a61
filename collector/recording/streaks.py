"""Pages that stay dirty from one round to the next: what becomes columns and rows of it."""

from __future__ import annotations

from pathlib import Path

from redirty.collector import files
from redirty.collector.metrics.streaks import Lengths, Streaks, length_classes
from redirty.collector.pageset import PageSet, empty
from redirty.collector.recording import columns
from redirty.collector.tracking.rounds import Round, SpaceRound

Key = tuple[int, int]  # process and address space


class StreakFiles:
    """Follows the rounds of a recording."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "runs.csv"
        self._streaks: dict[Key, Streaks] = {}
        self._lengths: dict[int, Lengths] = {}  # of runs that ended, by process
        self._stayed: dict[Key, PageSet] = {}
        self._fresh: dict[Key, PageSet] = {}
        self._rounds = 0

    def follow(self, result: Round) -> None:
        """Compares a round with the one before."""
        self._rounds += 1
        there = {(space.pid, space.space): space for space in result.spaces}
        for key in self._streaks.keys() - there.keys():
            self._streaks.pop(key).follow(empty(), self._of(key[0]))
        self._stayed, self._fresh = {}, {}
        for key, space in there.items():
            streaks = self._streaks.setdefault(key, Streaks())
            self._stayed[key], self._fresh[key] = streaks.follow(space.dirty, self._of(key[0]))

    def _of(self, pid: int) -> Lengths:
        return self._lengths.setdefault(pid, Lengths())

    def stayed(self, space: SpaceRound) -> PageSet | None:
        """Of its dirty pages those that were dirty in the round before, too; None in the first
        round, of which nobody knows."""
        return self._stayed[space.pid, space.space] if self._rounds > 1 else None

    def stayed_pages(self) -> int | None:
        """How many these are, in all address spaces."""
        return sum(map(len, self._stayed.values())) if self._rounds > 1 else None

    def fresh(self, space: SpaceRound) -> PageSet:
        """Of its dirty pages the others."""
        return self._fresh[space.pid, space.space]

    def write_runs(self) -> None:
        """Replaces runs.csv. Errors: RedirtyError."""
        rows: list[tuple[object, ...]] = [columns.RUNS]
        for pid, ended in sorted(self._lengths.items()):
            still = Lengths()
            for (of, _), streaks in self._streaks.items():
                if of == pid:
                    streaks.going_on(still)
            for (least, most), n, on in zip(
                length_classes(), ended.counts.tolist(), still.counts.tolist(), strict=True
            ):
                if n or on:
                    rows.append((pid, least, most, n, on))
        files.replace(self._path, [files.csv_bytes(rows)])
