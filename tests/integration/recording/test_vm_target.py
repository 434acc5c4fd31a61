"""--vm: only the memory of a process that is marked as a guest's counts (MADV_DONTFORK, as QEMU does).

tests/integration/recording/test_qemu.py has a real guest; here a program marks its memory in the same way, so
that every page of it is known, and maps more of it while it is traced.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from tests.support.processes import idle_process
from tests.support.recorded_run import Recorded
from tests.support.redirty_cli import run_redirty
from tests.support.waiting import wait_until
from tests.tiers import require_root

PAGES = 2048
EVERY = 3

# Writes every 3rd page of its guest's memory, every page of another area and of its heap, repeatedly;
# at a line of input it maps more for the guest.
PROGRAM = f"""
import ctypes, mmap, select, sys, time
def area(marked):
    found = mmap.mmap(-1, {PAGES} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found.madvise(mmap.MADV_NOHUGEPAGE)
    if marked:
        found.madvise(mmap.MADV_DONTFORK)
    address = ctypes.addressof(ctypes.c_char.from_buffer(found))
    print(address, flush=True)
    return found
guest, own = [area(True)], area(False)
while True:
    for ram in guest:
        for page in range(0, {PAGES}, {EVERY}):
            ram[page * 4096] = 1
    for page in range({PAGES}):
        own[page * 4096] = 1
    heap = bytearray(100_000)
    if select.select([sys.stdin], [], [], 0.05)[0]:
        sys.stdin.readline()
        guest.append(area(True))
"""


@contextmanager
def program() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the program; yield it and the address of its guest's memory."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        ram = int(child.stdout.readline())
        child.stdout.readline()
        try:
            yield child, ram
        finally:
            child.kill()


def written(address: int) -> set[int]:
    """Return the pages that the program writes in an area."""
    return {address // 4096 + page for page in range(0, PAGES, EVERY)}


def dirty_pages(directory: Path) -> set[int]:
    """Return all pages of a recording."""
    pages = pd.read_csv(directory / "pages.csv")
    return {int(address, 16) // 4096 for address in pages["address"]}


def full_rounds(recorded: Recorded, pages: set[int]) -> int:
    """Return the number of complete rounds in which as many pages were written."""
    lines = (recorded.directory / "rounds.csv").read_text().rpartition("\n")[0]
    return int((pd.read_csv(io.StringIO(lines))["dirty_pages"] == len(pages)).sum())


def test_only_the_guests_memory_counts(tmp_path: Path) -> None:
    require_root()
    with program() as (child, ram):
        with Recorded(tmp_path, "--vm", child.pid, interval="200ms") as recorded:
            wait_until(lambda: full_rounds(recorded, written(ram)) >= 4, "rounds with all pages")
        directory = recorded.directory
    count = len(written(ram))
    assert dirty_pages(directory) == written(ram)
    rounds = pd.read_csv(directory / "rounds.csv")
    assert (rounds["dirty_pages"] <= count).all()
    assert (rounds["missed_pages"].iloc[1:] == 0).all(), rounds
    # Only touched pages are present; and once all were written all of them were present before.
    after = rounds.iloc[int((rounds["dirty_pages"] == count).to_numpy().argmax()) + 1 :]
    assert (after["present_pages"] == count).all(), rounds
    assert (after["redirtied_pages"] == after["dirty_pages"]).all(), rounds
    # Each page faults once a round, or twice if it was written while the round was armed: the other pages that the
    # program writes would be 4 times as many.
    assert after["write_faults"].max() <= 2 * count, rounds
    curve = pd.read_csv(directory / "curve.csv")
    assert curve["unique_dirty_pages"].max() <= count
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["target"]["kind"] == "vm"
    assert meta["target"]["description"] == f"virtual machine of process {child.pid}"


def test_memory_that_is_plugged_in_later_counts(tmp_path: Path) -> None:
    require_root()
    with program() as (child, ram):
        assert child.stdin is not None
        assert child.stdout is not None
        with Recorded(tmp_path, "--vm", child.pid, interval="200ms") as recorded:
            child.stdin.write("more\n")
            child.stdin.flush()
            more = int(child.stdout.readline())
            both = written(ram) | written(more)
            wait_until(lambda: full_rounds(recorded, both) >= 1, "a round with the pages of both")
    assert dirty_pages(recorded.directory) == both


def test_a_process_that_is_no_vm_is_refused(tmp_path: Path) -> None:
    require_root()
    with idle_process() as child:
        done = run_redirty("record", "--vm", child.pid, "-o", tmp_path / "recording")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert f"-p {child.pid}" in line
    assert "guest" in line
