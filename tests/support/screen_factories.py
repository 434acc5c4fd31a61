"""Made-up processes and rounds of any size for the screens, and the recorded progress of a real mirror."""

from __future__ import annotations

import json

import numpy as np
from redirty.collector.linux.maps import Mapping
from redirty.collector.model.observations import Points
from redirty.collector.recording.columns import ROUNDS
from redirty.tui.readers.live import TopOptions
from redirty.tui.readers.mirror_process import Mirror
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from redirty.tui.snapshots.mirror_progress import MirrorProgress
from redirty.tui.snapshots.round_summary import COLUMN, RoundSummary, WrittenMappings, fold
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ProcessRow, ReaderState

from tests.support.paths import TESTS

REDIS = TESTS / "data" / "redis"  # a recording
MIRROR_LINES = TESTS / "data" / "mirror.jsonl"  # of a mirror of redis
OPTIONS = TopOptions()
QUESTION = ConvergenceQuestion(1.25e9)
NAMES = ("redis-server", "postgres", "nginx", "java", "qemu-system-x86", "sshd")


def make_overview(processes: int, number: int = 1) -> OverviewSnapshot:
    """Return a snapshot of a number of processes: the same for the same arguments."""
    found = []
    for i in range(processes):
        name = NAMES[i % len(NAMES)]
        faults = float((processes - i) * 10 * (1 + (i + number) % 3))
        found.append(
            ProcessRow(
                pid=1000 + i,
                comm=f"guest{i}" if name.startswith("qemu") else name,
                kind="vm" if name.startswith("qemu") else "process",
                cgroup=f"/system.slice/{name}.service",
                rss_bytes=(1 + i) << 20,
                write_faults=faults,
                first_touch=faults * 0.25,
                cow=None,
                mkwrite=None,
                tlb_flushes=float(i % 7),
                recent=tuple(float((i * 7 + n) % 11) for n in range(12)),
            )
        )
    found.sort(key=lambda p: (-p.write_faults, -p.rss_bytes))
    hooks = frozenset({"first_touch", "tlb"})
    return OverviewSnapshot(number, ReaderState.LIVE, "", tuple(found), 1.0, 0, hooks)


def make_round(
    number: int, mappings: int, dirty: int = 4, cpu_s: float | None = 0.5
) -> RoundSummary:
    """Return a round of one second in which each of a number of mappings was dirtied.

    Args:
        number: of the round.
        mappings: how many were written.
        dirty: pages written in each mapping, all but one of them re-dirtied.
        cpu_s: CPU time used by the target.
    """
    values = np.zeros(len(ROUNDS))
    total = mappings * dirty
    for name, value in {
        "round": number, "start_s": number, "duration_s": 1.0, "arm_s": 0.001,
        "present_pages": total * 4, "dirty_pages": total, "redirtied_pages": total - mappings,
        "new_pages": mappings, "log_pages": total, "write_faults": total,
    }.items():  # fmt: skip
        values[COLUMN[name]] = value
    base = 0x7F00_0000_0000
    items = tuple(
        Mapping(base + i * 0x10000, base + i * 0x10000 + 0x8000, "rw-p", "" if i % 2 else f"/m/{i}")
        for i in range(mappings)
    )
    ones = np.ones(mappings, np.int64)
    starts = np.arange(mappings, dtype=np.uint64) * np.uint64(0x10000) + np.uint64(base)
    written = WrittenMappings(
        mappings=items,
        pid=ones * 77,
        start=starts,
        present=ones * dirty * 4,
        dirty=ones * dirty,
        redirtied=ones * (dirty - 1),
        faults=ones,
    )
    keys = (np.arange(mappings, dtype=np.uint64) + np.uint64(base >> 18)) | np.uint64(77 << 39)
    counts = fold(keys, ones * dirty)
    return RoundSummary(number, values, written, (), Points.none(), counts, cpu_s)


def mirror_progress(lines: int | None = None) -> MirrorProgress:
    """Return the progress of a mirror of redis after a number of its lines; None: after all."""
    progress = MirrorProgress()
    for line in MIRROR_LINES.read_text().splitlines()[:lines]:
        progress = progress.apply(json.loads(line))
    return progress


def mirror_snapshot(command: MirrorCommand, lines: int | None, elapsed_s: float) -> MirrorSnapshot:
    """Return a snapshot of a mirror after a number of its lines; None: once it has ended."""
    progress, message = mirror_progress(lines), ""
    if lines is None:
        progress, message = progress.on_exit(0, "", cancelled=False)
    return MirrorSnapshot(1, ReaderState.LIVE, command, progress, message, elapsed_s)


class IdleMirror(Mirror):
    """A mirror reader that runs no process: a test publishes its snapshots."""

    def work(self) -> None:
        """Do nothing."""
