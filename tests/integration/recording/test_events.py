"""--events and --stacks record what the workload reports; what does not fit is counted, not hidden."""

from __future__ import annotations

import csv
import json
import subprocess
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.support.redirty_cli import finish, start_redirty
from tests.support.stepped_rounds import assert_same
from tests.support.tested_methods import METHOD_OPTIONS
from tests.support.waiting import PATIENCE_S, wait_idle, wait_until
from tests.workloads.driver import Phases
from tests.workloads.pages import Pages, Touched

pytestmark = pytest.mark.usefixtures("tracing")

AREAS = {"a": ("anon_private", 4), "b": ("file_shared", 4)}
PAGE_SHIFT = 12


def record(phases: Phases, directory: Path, *words: object) -> subprocess.Popen[str]:
    """Start a recording; yield once its first round runs."""
    program = start_redirty("record", *METHOD_OPTIONS, "-p", phases.pid, "-o", directory, *words)

    def started() -> bool:
        assert program.poll() is None, program.communicate()[1]
        return (directory / "rounds.csv").exists()

    wait_until(started, "the start of the recording")
    return program


def end(program: subprocess.Popen[str], rounds: int, directory: Path) -> None:
    """Wait for a number of complete rounds from now on, then interrupt the recording."""
    before = len((directory / "rounds.csv").read_text().splitlines())

    def ended() -> bool:
        assert program.poll() is None, program.communicate()[1]
        return len((directory / "rounds.csv").read_text().splitlines()) >= before + rounds

    wait_until(ended, f"the end of {rounds} rounds")
    program.terminate()
    done = finish(program, PATIENCE_S)
    assert done.code == 130, done.err


def lost(directory: Path) -> int:
    """Return the number of events lost in the whole recording."""
    with (directory / "rounds.csv").open(newline="") as file:
        return sum(int(row["lost_events"]) for row in csv.DictReader(file))


def executable_ranges(pid: int) -> list[tuple[int, int]]:
    """Return the ranges in which a process has code."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, perms, *_ = line.split()
        if "x" in perms:
            low, high = bounds.split("-")
            found.append((int(low, 16), int(high, 16)))
    return found


def test_events(tmp_path: Path) -> None:
    """Every page written has an event of the thread that wrote it, and no other page has one.

    The event is at an instruction of the thread's code, within the time of the write.
    """
    directory = tmp_path / "rec"
    with Phases(AREAS) as phases:
        program = record(phases, directory, "100ms", "--events")
        touched = [
            phases.write("a", "range:0", count=300, threads=2),
            phases.write("b", "stride:3", count=200, threads=2),
            phases.write("a", "range:1000", count=24),
        ]
        code = executable_ranges(phases.pid)
        pid, areas = phases.pid, list(phases.areas.values())
        end(program, 2, directory)
    events = pd.read_parquet(directory / "events.parquet")
    assert list(events) == ["time_s", "pid", "tid", "address", "ip", "kind", "stack_id"]
    assert lost(directory) == 0
    assert (events["pid"] == pid).all()
    pages = events["address"].to_numpy(np.uint64) >> np.uint64(PAGE_SHIFT)
    inside = np.isin(pages, np.concatenate([area.pages for area in areas]))
    ours, pages = events[inside], pages[inside]
    assert_same(np.unique(pages), union(touched), "pages of the events")
    assert set(ours["kind"]) <= {"write", "first_touch", "write_protect"}
    for address in ours["ip"].to_numpy(np.uint64).tolist():
        assert any(low <= address < high for low, high in code), f"{address:#x} is not code"
    tids = ours["tid"].to_numpy()
    for tid in phases.tids:
        wrote = [t.threads[tid] for t in touched if tid in t.threads]
        assert_same(np.unique(pages[tids == tid]), union(wrote), f"pages of thread {tid}")
    assert set(tids.tolist()) == set(phases.tids)
    check_times(ours["time_s"].to_numpy(), pages, touched)
    # and they are relative to `started`, by this machine's clock
    meta = json.loads((directory / "meta.json").read_text())
    started = datetime.fromisoformat(meta["started"]).timestamp()
    clocks_apart = time.time() - time.monotonic()
    first = touched[0].start_ns / 1e9 + clocks_apart
    assert (
        abs(started + float(ours["time_s"].min()) - first) < 60
    )  # both are read, one after the other


def union(touched: list[Touched] | list[Pages]) -> Pages:
    """Return all pages, each once."""
    parts = [t.pages if isinstance(t, Touched) else t for t in touched]
    return np.unique(np.concatenate(parts))


def check_times(time_s: NDArray[np.float64], pages: Pages, touched: list[Touched]) -> None:
    """Check that all events of a command are between its start and its end.

    Times are relative to the start of the recording: a single offset must make that true of all commands.
    """
    earliest, latest = -np.inf, np.inf
    for t in touched:
        own = time_s[np.isin(pages, t.pages)]
        earliest = max(earliest, t.start_ns / 1e9 - float(own.min()))
        latest = min(latest, t.end_ns / 1e9 - float(own.max()))
    assert earliest <= latest + 1e-6, "the events' times do not fit the commands'"


def test_no_events_at_all(tmp_path: Path) -> None:
    """A recording without any event has a file with the same columns."""
    directory = tmp_path / "rec"
    with Phases({"a": ("anon_private", 2)}) as phases:
        wait_idle(phases.pid)
        end(record(phases, directory, "50ms", "--events"), 1, directory)
    assert "address" in pd.read_parquet(directory / "events.parquet")


def test_stacks(tmp_path: Path) -> None:
    """The pages of all stacks are the pages logged, and the writing function is named."""
    directory = tmp_path / "rec"
    with Phases(AREAS) as phases:
        program = record(phases, directory, "100ms", "--stacks")
        count = len(phases.write("a", "all", threads=2).pages)
        count += len(phases.write("b", "stride:2").pages)
        end(program, 2, directory)
    lines = (directory / "stacks.folded").read_text().splitlines()
    stacks = {stack: int(pages) for stack, _, pages in (line.rpartition(" ") for line in lines)}
    with (directory / "rounds.csv").open(newline="") as file:
        logged = sum(int(row["log_pages"]) for row in csv.DictReader(file))
    # What was logged after the last complete round is in the stacks only.
    assert logged >= count
    assert logged <= sum(stacks.values()) <= logged + 64
    writers = {s: n for s, n in stacks.items() if {"write_page", "touch_part"} & set(s.split(";"))}
    assert sum(writers.values()) >= count, f"no writer among {list(stacks)[:3]}"
    assert all(stack.startswith("phases;") for stack in stacks)
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["target"]["comm"] == "phases"
