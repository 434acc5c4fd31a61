"""All processes by their write faults, counted in the kernel; nothing is armed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import numpy as np
from redirty.collector.bpf.system_counts import CountsByProcess, SystemCounts
from redirty.collector.target.process_table import ProcessTable
from redirty.tui.readers.base import Reader
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ProcessRow, ReaderState

RECENT = 12  # values of a sparkline
MIN_INTERVAL_S = 0.2
_NO_COUNTS = (0, 0, 0, 0, 0, 0)

Counts = tuple[int, int, int, int, int, int]


class Overview(Reader[OverviewSnapshot]):
    """interval_s: between two looks; may be set at any time. suspend() while another screen is shown:
    then nothing is attached."""

    def __init__(self, interval_s: float = 1.0) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._suspended = False
        self._census = ProcessTable()
        self._before: dict[int, Counts] = {}
        self._recent: dict[int, deque[float]] = {}

    @property
    def interval_s(self) -> float:
        """Between two looks."""
        return self._interval_s

    def set_interval(self, seconds: float) -> None:
        """Another one, from now on."""
        with self._wake:
            self._interval_s = max(seconds, MIN_INTERVAL_S)
            self._wake.notify_all()

    def suspend(self, suspended: bool) -> None:
        """Lets go of the kernel, or begins again."""
        with self._wake:
            self._suspended = suspended
            self._wake.notify_all()

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader."""
        self._census.look()
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
        """See Reader."""
        text = str(error) or type(error).__name__
        if getattr(error, "exit_code", None) is None:
            text = f"internal error: {type(error).__name__}: {text}"
        old = self.latest or OverviewSnapshot(0, ReaderState.FAILED, "")
        self.publish(
            OverviewSnapshot(
                self.next_number(),
                ReaderState.FAILED,
                text,
                old.processes,
                old.seconds,
                old.lost,
                old.features,
            )
        )

    def _count(self, counts: SystemCounts) -> None:
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
                if any(after := tuple(x - y for x, y in zip(c, self._of(pid), strict=True)))
            }
            self._before = found
            for pid in self._census.look(rates) | (found.keys() - self._census.processes.keys()):
                if pid not in self._census.processes:
                    counts.forget(pid)
                    self._before.pop(pid, None)
                self._recent.pop(pid, None)
            self.publish(
                self._snapshot(ReaderState.LIVE, rates, now - then, counts.features, read.lost)
            )
            then = now

    def _of(self, pid: int) -> Counts:
        return self._before.get(pid, _NO_COUNTS)

    def _snapshot(
        self,
        state: ReaderState,
        rates: dict[int, tuple[int, ...]],
        seconds: float,
        features: frozenset[str],
        lost: int,
    ) -> OverviewSnapshot:
        per = 1 / seconds if seconds > 0 else 0.0
        found = []
        for pid, known in self._census.processes.items():
            faults, first, cow, mkwrite, here, asked = rates.get(pid, _NO_COUNTS)
            recent = self._recent.get(pid)
            if recent is None and faults:
                recent = self._recent[pid] = deque(maxlen=RECENT)
            if recent is not None:
                recent.append(faults * per)
            found.append(
                ProcessRow(
                    pid,
                    known.name,
                    known.kind,
                    known.cgroup,
                    known.rss_bytes,
                    faults * per,
                    first * per if "first_touch" in features else None,
                    cow * per if "cow" in features else None,
                    mkwrite * per if "mkwrite" in features else None,
                    max(here, asked) * per if "tlb" in features else None,
                    tuple(recent) if recent is not None else (),
                )
            )
        found.sort(key=lambda p: (-p.write_faults, -p.rss_bytes))
        return OverviewSnapshot(
            self.next_number(), state, "", tuple(found), seconds, lost, features
        )


def by_pid(read: CountsByProcess) -> dict[int, Counts]:
    """Counts by process."""
    return dict(zip(read.pid.tolist(), read.counts.tolist(), strict=True))


def chosen(processes: Iterable[ProcessRow], words: str, kind: str = "") -> list[ProcessRow]:
    """Those in whose pid, name or cgroup each of some words is, whatever its case."""
    wanted = words.lower().split()
    return [
        p
        for p in processes
        if (not kind or p.kind == kind)
        and all(w in p.comm.lower() or w in p.cgroup.lower() or w == str(p.pid) for w in wanted)
    ]


def by_cgroup(processes: Iterable[ProcessRow]) -> list[ProcessRow]:
    """One row a cgroup, the most written first."""
    groups: dict[str, list[ProcessRow]] = {}
    for p in processes:
        groups.setdefault(p.cgroup, []).append(p)
    found = []
    for path, members in groups.items():
        recent = np.zeros(RECENT)
        for p in members:
            if p.recent:
                recent[-len(p.recent) :] += p.recent
        most = max(members, key=lambda p: p.write_faults)
        found.append(
            ProcessRow(
                0,
                most.comm,
                "cgroup",
                path,
                sum(p.rss_bytes for p in members),
                sum(p.write_faults for p in members),
                _sum([p.first_touch for p in members]),
                _sum([p.cow for p in members]),
                _sum([p.mkwrite for p in members]),
                _sum([p.tlb_flushes for p in members]),
                tuple(recent.tolist()),
                len(members),
            )
        )
    return sorted(found, key=lambda p: (-p.write_faults, -p.rss_bytes))


def _sum(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None
