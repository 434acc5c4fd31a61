"""A machine's processes, and rounds of targets of any size, made up; a real mirror up to some line."""

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
from redirty.tui.snapshots.round_summary import COLUMN, RoundSummary, WrittenMappings, folded
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ProcessRow, ReaderState

from tests.support.paths import TESTS

MIRROR_LINES = TESTS / "data" / "mirror.jsonl"
WANTED = TopOptions()
ASKED = ConvergenceQuestion(1.25e9)
NAMES = ("redis-server", "postgres", "nginx", "java", "qemu-system-x86", "sshd")


def machine(processes: int, number: int = 1) -> OverviewSnapshot:
    """Processes of a machine: the same for the same numbers."""
    found = []
    for i in range(processes):
        name = NAMES[i % len(NAMES)]
        faults = float((processes - i) * 10 * (1 + (i + number) % 3))
        found.append(
            ProcessRow(
                1000 + i,
                f"guest{i}" if name.startswith("qemu") else name,
                "vm" if name.startswith("qemu") else "process",
                f"/system.slice/{name}.service",
                (1 + i) << 20,
                faults,
                faults * 0.25,
                None,
                None,
                float(i % 7),
                tuple(float((i * 7 + n) % 11) for n in range(12)),
            )
        )
    found.sort(key=lambda p: (-p.write_faults, -p.rss_bytes))
    features = frozenset({"first_touch", "tlb"})
    return OverviewSnapshot(number, ReaderState.LIVE, "", tuple(found), 1.0, 0, features)


def facts(number: int, mappings: int, dirty: int = 4, cpu_s: float | None = 0.5) -> RoundSummary:
    """A round of a second in which each of so many mappings was dirtied."""
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
        items, ones * 77, starts, ones * dirty * 4, ones * dirty, ones * (dirty - 1), ones
    )
    keys = (np.arange(mappings, dtype=np.uint64) + np.uint64(base >> 18)) | np.uint64(77 << 39)
    places = folded(keys, ones * dirty)
    return RoundSummary(number, values, written, (), Points.none(), places, cpu_s)


def mirror_of(wish: MirrorCommand, lines: int | None, took_s: float) -> MirrorSnapshot:
    """A mirror of redis after so many of its lines; None: at its end."""
    progress = MirrorProgress()
    for line in MIRROR_LINES.read_text().splitlines()[:lines]:
        progress = progress.take(json.loads(line))
    message = ""
    if lines is None:
        progress, message = progress.ended(0, "", cancelled=False)
    return MirrorSnapshot(1, ReaderState.LIVE, wish, progress, message, took_s)


class Silent(Mirror):
    """One that does nothing: what it publishes is told by a test."""

    def work(self) -> None:
        """Nothing."""
