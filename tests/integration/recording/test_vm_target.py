"""--vm: only the memory of a process that is marked as a guest's counts (MADV_DONTFORK, as QEMU does).

tests/integration/recording/test_qemu.py has a real guest; here a program marks its memory in the same way, so
that every page of it is known, and maps more of it while it is traced.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from tests.support.processes import idle_process
from tests.support.redirty_cli import REDIRTY, run_redirty
from tests.support.tested_methods import ARM, PROBE
from tests.support.waiting import PATIENCE_S
from tests.tiers import require_root

PAGES = 2048
EVERY = 3
HOW = ("--probe", PROBE, "--arm", ARM)

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


def test_only_the_guests_memory_counts(tmp_path: Path) -> None:
    require_root()
    directory = tmp_path / "recording"
    with program() as (child, ram):
        words = ["--vm", child.pid, *HOW, "200ms", 5, "-o", directory]
        done = run_redirty("record", *words)
    assert done.code == 0, done
    assert dirty_pages(directory) == written(ram)
    rounds = pd.read_csv(directory / "rounds.csv")
    assert (rounds["dirty_pages"] <= len(written(ram))).all()
    assert (rounds["missed_pages"].iloc[1:] == 0).all(), rounds
    # Only touched pages are present, and after the first round all of them were present before.
    assert (rounds["present_pages"].iloc[1:] == len(written(ram))).all(), rounds
    assert (rounds["redirtied_pages"].iloc[1:] == len(written(ram))).all(), rounds
    # Each page faults once a round: the other pages that the program writes would be 4 times as many.
    assert rounds["write_faults"].iloc[1:].max() <= 1.1 * len(written(ram)), rounds
    curve = pd.read_csv(directory / "curve.csv")
    assert curve["unique_dirty_pages"].max() <= len(written(ram))
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["target"]["kind"] == "vm"
    assert meta["target"]["description"] == f"virtual machine of process {child.pid}"


def test_memory_that_is_plugged_in_later_counts(tmp_path: Path) -> None:
    require_root()
    directory = tmp_path / "recording"
    with program() as (child, ram):
        assert child.stdin is not None
        assert child.stdout is not None
        with subprocess.Popen(
            [REDIRTY, "record", "--vm", str(child.pid), *HOW, "200ms", "12", "-q", "-o", directory]
        ) as recording:
            while not (directory / "rounds.csv").exists():
                assert recording.poll() is None
            child.stdin.write("more\n")
            child.stdin.flush()
            more = int(child.stdout.readline())
            assert recording.wait(PATIENCE_S) == 0
    assert dirty_pages(directory) == written(ram) | written(more)
    late = pd.read_csv(directory / "rounds.csv").iloc[-1]
    assert late["dirty_pages"] == len(written(ram) | written(more))


def test_a_process_that_is_no_vm_is_refused(tmp_path: Path) -> None:
    require_root()
    with idle_process() as child:
        done = run_redirty("record", "--vm", child.pid, "-o", tmp_path / "recording")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert f"-p {child.pid}" in line
    assert "guest" in line
