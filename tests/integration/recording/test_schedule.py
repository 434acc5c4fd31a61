"""Rounds start on schedule, also on a busy machine."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.recording.options import RecordingOptions
from redirty.collector.recording.session import Session
from redirty.collector.target.targets import Pids
from redirty.collector.tracking.rounds import Round

from tests.support.redirty_cli import run_redirty
from tests.support.stepped_rounds import assert_same, within
from tests.support.tested_methods import METHOD_OPTIONS, PROBE, arm_method
from tests.support.waiting import wait_idle
from tests.workloads.driver import Pages, Phases, Writer

pytestmark = pytest.mark.usefixtures("tracing")

INTERVAL_S = 0.1
ROUNDS = 100


@pytest.fixture
def busy() -> Iterator[None]:
    """Keep every processor busy."""
    spin = "while True: pass"
    children = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", spin])
        for _ in range(os.cpu_count() or 1)
    ]
    yield
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.usefixtures("busy")
def test_hundred_rounds_under_load(tmp_path: Path) -> None:
    """100 rounds of 100 ms under load are all there; none is lost or overlaps another.

    Boundaries stay on the clock instead of drifting by what each round took.
    """
    directory = tmp_path / "rec"
    with Writer(mib=8) as writer:
        writer.start("cyclic", rate=2000, pages=2000)
        command = (f"{INTERVAL_S * 1000:.0f}ms", ROUNDS, "-o", directory)
        done = run_redirty("record", *METHOD_OPTIONS, "-p", writer.pid, *command)
        writer.signal(signal.SIGKILL)
    assert done.code == 0, done.err
    with (directory / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == list(range(ROUNDS))
    assert json.loads((directory / "meta.json").read_text())["complete"] is True

    starts = [float(row["start_s"]) for row in rows]
    ends = [s + float(row["duration_s"]) for s, row in zip(starts, rows, strict=True)]
    assert starts[0] == 0
    for end, start in zip(ends, starts[1:], strict=False):
        assert abs(start - end) < 0.001, "rounds are not contiguous"
    # Each boundary belongs to a multiple of the interval of its own, which it follows by less than a round.
    # On a machine too busy for that, boundaries are skipped, not shifted.
    boundaries = [int(end / INTERVAL_S + 1e-4) for end in ends]
    assert boundaries == sorted(set(boundaries)), "two boundaries within one interval"
    assert sum(int(row["lost_events"]) for row in rows) == 0
    assert sum(int(row["dirty_pages"]) > 0 for row in rows) >= 2


def test_pages_written_before_finish_are_recorded(tmp_path: Path) -> None:
    """finish() during the end of a round, as on a slow machine, adds a round with what was written meanwhile."""
    with Phases({"a": ("anon_private", 2)}) as phases:
        found: list[Pages] = []
        written: list[Pages] = []

        def write_and_finish(result: Round) -> None:
            (space,) = result.spaces
            found.append(within(space.dirty, phases.areas["a"]))
            if not written:
                written.append(phases.write("a", "random", 5, 40).pages)
                wait_idle(phases.pid)
                session.finish()

        plan = RecordingOptions(
            Pids([phases.pid]), tmp_path / "rec", 0.05, arm=arm_method(), probe=PROBE
        )
        session = Session(plan, write_and_finish)
        session.run()
    assert len(found) == 2
    assert_same(found[1], written[0], "written before the end was asked for")
