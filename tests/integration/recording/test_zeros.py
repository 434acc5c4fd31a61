"""record --zeros: zero pages of a running program, compared with what it did to each page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.support.processes import idle_process
from tests.support.redirty_cli import run_redirty
from tests.support.tested_methods import ARM, PROBE
from tests.tiers import require_root

# Of 3,000 pages, 0 to 999 are never touched; of the others every 4th is written with zeros, every 4th but
# one is only read, the rest have a nonzero last byte.
PROGRAM = """
import ctypes, mmap, sys, time
area = mmap.mmap(-1, 3000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(1000, 3000):
    if page % 4 == 0:
        area[page * 4096] = 0
    elif page % 4 == 1:
        area[page * 4096]
    else:
        area[page * 4096 + 4095] = 1
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
while True:
    area[2999 * 4096 + 4095] = 1
    time.sleep(0.01)
"""


def resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Rss:")).split()[1])


def test_zero_pages_are_counted_and_no_page_is_touched(tmp_path: Path) -> None:
    require_root()
    directory = tmp_path / "recording"
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        start = int(child.stdout.readline())
        page_tables = Path(f"/proc/{child.pid}/status")
        before = resident_kib(child.pid), table_kib(page_tables)
        words = ["-p", child.pid, "--probe", PROBE, "--arm", ARM, "100ms", 3]
        done = run_redirty("record", *words, "--zeros", "-o", directory)
        after = resident_kib(child.pid), table_kib(page_tables)
        child.kill()
    assert done.code == 0, done
    assert after[0] - before[0] < 256, "pages that were never touched must not be read"
    assert after[1] - before[1] < 64
    zeros = pd.read_csv(directory / "zeros.csv")
    begins, ends = (zeros[n].map(lambda x: int(x, 16)) for n in ("start", "end"))
    assert (zeros["pages"] * 4096 == ends - begins).all()
    area = zeros[(begins >= start) & (ends <= start + 3000 * 4096)]
    inside = area["pages"].sum(), area["present_pages"].sum(), area["zero_pages"].sum()
    # Adjacent mappings may be merged: then the ranges at the ends belong to both.
    assert 2000 < inside[0] <= 3000, area
    whole = zeros[(ends > start) & (begins < start + 3000 * 4096)]
    assert whole["present_pages"].sum() >= 2000
    assert whole["zero_pages"].sum() >= 1000
    inner = area[(begins[area.index] >= start + 1000 * 4096) & (area["pages"] == 512)]
    assert len(inner) >= 2, area
    assert (inner["present_pages"] == 512).all()
    assert (inner["zero_pages"] == 256).all()


def table_kib(status: Path) -> int:
    return int(
        next(x for x in status.read_text().splitlines() if x.startswith("VmPTE:")).split()[1]
    )


def test_without_the_switch_there_is_no_file(tmp_path: Path) -> None:
    require_root()
    directory = tmp_path / "recording"
    with idle_process() as child:
        done = run_redirty("record", "-p", child.pid, "50ms", 1, "-o", directory)
    assert done.code == 0, done
    assert not (directory / "zeros.csv").exists()
