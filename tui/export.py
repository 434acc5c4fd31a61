"""Exports what a screen shows: CSV rows with a heading for each view, and the files they go into."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from redirty.collector import files, text
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder, give_to_caller
from redirty.collector.recording.columns import ROUNDS
from redirty.tui.snapshots.mirror import MirrorSnapshot
from redirty.tui.snapshots.snapshot import TargetSnapshot

Rows = Iterator[Sequence[object]]
_MAX_SAME_NAME = 1000  # in one second


def hold_working_directory() -> Folder | None:
    """Hold the working directory for exports; return None if it is gone.

    Relative paths would follow the process, and the name could become another directory's.
    """
    try:
        return Folder.hold(Path(), Path.cwd())
    except OSError:
        return None


def save_csv(folder: Folder | None, view: str, rows: Rows) -> Path:
    """Write rows into a new file (0600) in a directory, for spreadsheets; return its path.

    Raises:
        RedirtyError: the file cannot be written.
    """
    return save(folder, view, "csv", files.csv_bytes(text.cells(rows)))


def save(folder: Folder | None, view: str, ending: str, content: bytes) -> Path:
    """Write a new file (0600) in a directory; return its path.

    Args:
        folder: the directory; None: there is none.
        view: part of the file's name.
        ending: ending of the file's name, without a dot.
        content: content of the file.

    Raises:
        RedirtyError: the file cannot be written.
    """
    name = f"redirty-{view}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"
    if folder is None:
        file = f"{name}.{ending}"
        raise RedirtyError(f"cannot write {file}: the working directory is gone")
    name, fd = _new_file(folder, name, ending)
    path = folder.path / name
    try:
        files.write_all(fd, [content])
        give_to_caller(fd)
    except OSError as e:
        folder.remove(name)
        raise files.write_error(path, e) from None
    finally:
        os.close(fd)
    return path


def _new_file(folder: Folder, name: str, ending: str) -> tuple[str, int]:
    """Create a file of this name, or with a number after it; return its name and descriptor.

    Raises:
        RedirtyError: it cannot be created.
    """
    for number in range(1, _MAX_SAME_NAME):
        tried = f"{name}.{ending}" if number == 1 else f"{name}-{number}.{ending}"
        try:
            return tried, folder.new_file(tried)
        except FileExistsError:
            continue
        except OSError as e:
            raise files.write_error(folder.path / tried, e) from None
    path = folder.path / f"{name}.{ending}"
    raise RedirtyError(f"cannot write {path}: too many files have its name")


def rounds(s: TargetSnapshot) -> Rows:
    """Yield the rounds shown, with the columns of rounds.csv."""
    yield ROUNDS
    for row in s.series.values.tolist():
        yield [None if math.isnan(v) else int(v) if v == int(v) else round(v, 9) for v in row]


def heat(s: TargetSnapshot) -> Rows:
    """Yield the heat map, a row for each cell that is not empty."""
    yield ("start_s", "pid", "address", "dirty_pages")
    if s.heat is not None:
        for column, start in enumerate(s.heat.start_s.tolist()):
            for row, (pid, address) in enumerate(s.heat.first):
                if pages := int(s.heat.pages[row, column]):
                    yield (f"{start:.6f}", pid, f"{address:#x}", pages)


def passes(s: TargetSnapshot) -> Rows:
    """Yield the predicted passes."""
    yield ("pass", "bytes", "duration_s", "bandwidth_bytes_per_s", "downtime_goal_s", "policy")
    c = s.convergence
    for p in c.passes if c is not None else ():
        assert c is not None
        q = c.question
        yield (p.number, round(p.bytes), f"{p.duration_s:.6f}", q.bandwidth, q.downtime_s, q.policy)


def tlb(s: TargetSnapshot) -> Rows:
    """Yield recent TLB flushes by reason."""
    yield ("reason", "flushes_per_s", "full_flushes_per_s", "pages_per_s", "time_s_per_s",
           "arm_flushes_per_s", "arm_time_s_per_s")  # fmt: skip
    for t in s.tlb:
        yield (t.reason, t.flushes, t.full_flushes, t.pages, t.time_s, t.arm_flushes, t.arm_time_s)


def writers(s: TargetSnapshot) -> Rows:
    """Yield the threads and stacks that wrote recently."""
    yield ("pid", "tid", "stack", "pages_per_s", "share")
    for w in s.writers or ():
        yield (w.writer.pid, w.writer.tid or None, w.writer.stack, w.pages_per_s, w.share)


def mirror(s: MirrorSnapshot | None) -> Rows:
    """Yield the completed passes of a mirror, each with the decision after it."""
    yield ("pass", "pages", "sent_pages", "zero_pages", "unchanged_pages", "held_pages", "bytes",
           "duration_s", "dirty_pages_per_s", "decision", "reason")  # fmt: skip
    if s is None:
        return
    decisions = {d.after_pass: d for d in s.progress.decisions if d.action}
    for p in s.progress.passes:
        dirty = None if p.dirty_per_s is None else round(p.dirty_per_s, 3)
        decision = decisions.get(p.number)
        action, reason = (None, None) if decision is None else (decision.action, decision.reason)
        yield (p.number, p.pages, p.sent_pages, p.zero_pages, p.unchanged_pages, p.deferred_pages,
               p.bytes, f"{p.duration_s:.6f}", dirty, action, reason)  # fmt: skip
