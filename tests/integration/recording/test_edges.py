"""Edges of an address space: its last page, memory that is only reserved, and large, busy mappings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from redirty.collector.arming.methods import open_armed, round_trip
from redirty.collector.linux.maps import MapsFile
from redirty.collector.pageset import from_pages, page_numbers
from redirty.collector.ptrace.injector_client import Injector

from tests.support.phase_walk import Start, Walk
from tests.support.stepped_rounds import NONE
from tests.tiers import require, require_root

# Reserves a gigabyte, and another one that must not be touched; reports it; waits.
_RESERVES = """
import mmap, sys
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
a = mmap.mmap(-1, 1 << 30, flags=flags)
b = mmap.mmap(-1, 1 << 30, flags=flags, prot=0)
print("reserved", flush=True)
sys.stdin.read()
"""


def page_tables_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmPTE:"):
            return int(line.split()[1])
    raise AssertionError("no VmPTE")


def _arm_uffd(pid: int, pages: list[int] | None = None) -> tuple[list[int], list[int]]:
    """Arm a process twice; return which of the pages (default: its last) are written, and which present."""
    injector = Injector()
    try:
        reason = round_trip("uffd", injector)
        require(reason is None, str(reason))
        armed = open_armed("uffd", pid, injector)
        try:
            mappings = MapsFile(pid).read()
            assert mappings is not None
            for _ in range(2):
                armed.arm(mappings, armed.present(mappings, 0, 1 << 52).pages)
            last = mappings.items[-1].end // 4096 - 1
            chosen = from_pages(np.array(pages or [last], np.uint64))
            written, present = armed.resolve(chosen, mappings)
            return page_numbers(written).tolist(), page_numbers(present).tolist()
        finally:
            armed.close()
    finally:
        injector.close()


def test_memory_that_is_only_reserved_gets_no_page_tables() -> None:
    require_root()
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _RESERVES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline()
        before = page_tables_kib(child.pid)
        _arm_uffd(child.pid)
        # Page tables for all of it would take 4 MiB.
        assert page_tables_kib(child.pid) - before < 256
    finally:
        child.kill()
        child.communicate()


def test_shared_mapping_that_is_cut_again_and_again(start: Start) -> None:
    """A shared mapping that is cut repeatedly uses up nothing, and its pages are not dirty for being read."""
    walk = start(large=("memfd", 128))
    phases, live = walk.phases, walk.live
    for cut in range(12):
        phases.mprotect("large", writable=False, first=cut, count=1)
        live.end_round()
    phases.mapnew("late", "anon_shared", 128)
    live.end_round()
    walk = Walk(phases, live)
    phases.read("late", "range:0", count=100)
    walk.end(NONE, missed=NONE)
    truth = phases.write("late", "range:90", count=20).pages
    walk.end(truth, missed=NONE)
