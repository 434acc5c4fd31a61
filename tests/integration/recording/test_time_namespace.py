"""A recording made in a time namespace, where CLOCK_MONOTONIC is not the clock that BPF programs read."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.redirty_cli import run_redirty
from tests.tiers import require

pytestmark = pytest.mark.usefixtures("tracing")


WRITER = """
import mmap, time
area = mmap.mmap(-1, 400 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
while True:
    for page in range(400):
        area[page * 4096] = 1
        time.sleep(0.0002)
"""


@pytest.mark.parametrize("shift_s", [100000, -5])
def test_times_of_writes_are_those_of_the_round(shift_s: int, tmp_path: Path) -> None:
    require(Path("/proc/self/ns/time").exists(), "this kernel has no time namespaces")
    to = tmp_path / "r"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", WRITER]) as target:
        done = run_redirty(
            *("record", "-p", target.pid, "400ms", "4", "--events", "-o", to),
            wrapper=("unshare", "-T", f"--monotonic={shift_s}", f"--boottime={shift_s}"),
        )
        target.kill()
    assert done.code == 0, done
    with (to / "rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    end_s = float(rounds[-1]["start_s"]) + float(rounds[-1]["duration_s"])
    events = pq.read_table(to / "events.parquet").column("time_s").to_pylist()
    dirty = sum(int(r["dirty_pages"]) for r in rounds)
    assert dirty and len(events) >= dirty / 2
    assert min(events) >= 0 and max(events) <= end_s + 0.5
    with (to / "curves.csv").open() as file:
        points = [p for p in csv.DictReader(file) if p["round"] == "1" and p["rounds"] == "0"]
    times = {float(p["elapsed_s"]) for p in points}
    assert len(times) > 3 and max(times) > 0.01, "not all at once"
