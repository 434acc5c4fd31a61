"""Reads the write faults of all processes, counted in the kernel; nothing is armed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import numpy as np
from redirty.collector.bpf.system_counts import CountsByProcess, SystemCounts
from redirty.collector.target.process_table import ProcessTable
from redirty.tui.readers.base import Reader, error_text
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ProcessRow, ReaderState

RECENT = 12  # values of a sparkline
MIN_INTERVAL_S = 0.2
_NO_COUNTS = (0, 0, 0, 0, 0, 0)

Counts = tuple[int, int, int, int, int, int]


class Overview(Reader[OverviewSnapshot]):
    """Publishes a snapshot of all processes every interval_s seconds.

    suspend() while another screen is shown: nothing is attached then.
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._suspended = False
        self._table = ProcessTable()
        self._before: dict[int, Counts] = {}
        self._recent: dict[int, deque[float]] = {}

    @property
    def interval_s(self) -> float:
        """Seconds between two snapshots."""
        return self._interval_s

    def set_interval(self, seconds: float) -> None:
        """Change the interval, at once."""
        with self._wake:
            self._interval_s = max(seconds, MIN_INTERVAL_S)
            self._wake.notify_all()

    def suspend(self, suspended: bool) -> None:
        """Detach from the kernel, or attach again."""
        with self._wake:
            self._suspended = suspended
            self._wake.notify_all()

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader."""
        self._table.poll()
        self.publish(self._snapshot(ReaderState.STARTING, {}, 0.0, frozenset(), 0))
        while not self.stopping:
            if self._suspended:
                with self._wake:
                    self._wake.wait(1.0)
                continue
            counts = SystemCounts()
            try:
                self._count(counts)
            finally:
                counts.close()
                self._before = {}

    def failed(self, error: Exception) -> None:
        """See Reader. The latest processes stay on the screen."""
        old = self.latest or OverviewSnapshot(0, ReaderState.FAILED, "")
        self.publish(
            OverviewSnapshot(
                number=self.next_number(),
                state=ReaderState.FAILED,
                message=error_text(error),
                processes=old.processes,
                seconds=old.seconds,
                lost=old.lost,
                hooks=old.hooks,
            )
        )

    def _count(self, counts: SystemCounts) -> None:
        """Publish snapshots until the reader is stopped or suspended."""
        then = time.monotonic()
        self._before = by_pid(counts.read())
        while True:
            with self._wake:
                while not self.stopping and not self._suspended:
                    left = then + self._interval_s - time.monotonic()
                    if left <= 0:
                        break
                    self._wake.wait(left)
                if self.stopping or self._suspended:
                    return
            read = counts.read()
            now = time.monotonic()
            found = by_pid(read)
            rates = {
                pid: after
                for pid, c in found.items()
                if any(
                    after := tuple(x - y for x, y in zip(c, self._last_counts(pid), strict=True))
                )
            }
            self._before = found
            for pid in self._table.poll(rates) | (found.keys() - self._table.processes.keys()):
                if pid not in self._table.processes:
                    counts.forget(pid)
                    self._before.pop(pid, None)
                self._recent.pop(pid, None)
            self.publish(
                self._snapshot(ReaderState.LIVE, rates, now - then, counts.hooks, read.lost)
            )
            then = now

    def _last_counts(self, pid: int) -> Counts:
        return self._before.get(pid, _NO_COUNTS)

    def _snapshot(
        self,
        state: ReaderState,
        rates: dict[int, tuple[int, ...]],
        seconds: float,
        hooks: frozenset[str],
        lost: int,
    ) -> OverviewSnapshot:
        per = 1 / seconds if seconds > 0 else 0.0
        found = []
        for pid, known in self._table.processes.items():
            faults, first, cow, mkwrite, here, requested = rates.get(pid, _NO_COUNTS)
            recent = self._recent.get(pid)
            if recent is None and faults:
                recent = self._recent[pid] = deque(maxlen=RECENT)
            if recent is not None:
                recent.append(faults * per)
            found.append(
                ProcessRow(
                    pid=pid,
                    comm=known.name,
                    kind=known.kind,
                    cgroup=known.cgroup,
                    rss_bytes=known.rss_bytes,
                    write_faults=faults * per,
                    first_touch=first * per if "first_touch" in hooks else None,
                    cow=cow * per if "cow" in hooks else None,
                    mkwrite=mkwrite * per if "mkwrite" in hooks else None,
                    tlb_flushes=max(here, requested) * per if "tlb" in hooks else None,
                    recent=tuple(recent) if recent is not None else (),
                )
            )
        found.sort(key=lambda p: (-p.write_faults, -p.rss_bytes))
        return OverviewSnapshot(self.next_number(), state, "", tuple(found), seconds, lost, hooks)


def by_pid(read: CountsByProcess) -> dict[int, Counts]:
    """Return counts by process."""
    return dict(zip(read.pid.tolist(), read.counts.tolist(), strict=True))


def matching(processes: Iterable[ProcessRow], words: str, kind: str = "") -> list[ProcessRow]:
    """Return the processes that match all words, ignoring case.

    Args:
        processes: to choose from.
        words: separated by spaces; each is a pid, or part of a name or of a cgroup's path.
        kind: process or vm; empty: any.
    """
    terms = words.lower().split()
    return [
        p
        for p in processes
        if (not kind or p.kind == kind)
        and all(w in p.comm.lower() or w in p.cgroup.lower() or w == str(p.pid) for w in terms)
    ]


def by_cgroup(processes: Iterable[ProcessRow]) -> list[ProcessRow]:
    """Return one row per cgroup, those with the most write faults first."""
    groups: dict[str, list[ProcessRow]] = {}
    for p in processes:
        groups.setdefault(p.cgroup, []).append(p)
    found = []
    for path, members in groups.items():
        recent = np.zeros(RECENT)
        for p in members:
            if p.recent:
                recent[-len(p.recent) :] += p.recent
        hottest = max(members, key=lambda p: p.write_faults)
        found.append(
            ProcessRow(
                pid=0,
                comm=hottest.comm,
                kind="cgroup",
                cgroup=path,
                rss_bytes=sum(p.rss_bytes for p in members),
                write_faults=sum(p.write_faults for p in members),
                first_touch=_sum([p.first_touch for p in members]),
                cow=_sum([p.cow for p in members]),
                mkwrite=_sum([p.mkwrite for p in members]),
                tlb_flushes=_sum([p.tlb_flushes for p in members]),
                recent=tuple(recent.tolist()),
                members=len(members),
            )
        )
    return sorted(found, key=lambda p: (-p.write_faults, -p.rss_bytes))


def _sum(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None
