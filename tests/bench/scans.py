"""Arming with the scan, next to a C loop that does the same and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from redirty.collector.linux.malloc import retain_freed_memory
from redirty.collector.tracking.address_space import PRESENCE_PAGES_A_ROUND

from tests.bench.figures import pairs
from tests.bench.results import Row, not_run, number, of_pairs
from tests.bench.target import armed_sweep, available_mib, cpus, pinned
from tests.workloads.driver import ScanFloor

_GOAL = 1.1
_SIZES_MIB = (64, 256, 1024, 4096, 8192)
_SPARE_MIB = 2048


def rows(quick: bool) -> Iterator[Row]:
    """Dirty all pages of an area, then scan and protect them again, by turns here and in C."""
    retain_freed_memory()  # as a session does
    target_cpu, own_cpu = cpus()
    usual = os.sched_getaffinity(0)
    # Whether the target's processor has to drop translations makes a difference.
    os.sched_setaffinity(0, {own_cpu})
    try:
        for mib in _SIZES_MIB[:3] if quick else _SIZES_MIB:
            name = f"arm and scan {mib} MiB"
            if available_mib() < mib + _SPARE_MIB:
                yield not_run(name, f"needs {mib + _SPARE_MIB} MiB of free memory")
                continue
            count = 5 if quick else max(15, min(101, 8192 // mib))
            yield from _size(name, mib, count, target_cpu, own_cpu)
    finally:
        os.sched_setaffinity(0, usual)


def _size(name: str, mib: int, count: int, target_cpu: int, own_cpu: int) -> Iterator[Row]:
    here = pinned(own_cpu)
    with (
        armed_sweep(mib, target_cpu) as target,
        ScanFloor(target.sweep.pid, mode="written", wrapper=here) as same,
        ScanFloor(target.sweep.pid, wrapper=here) as full,
    ):
        pages = mib * 256
        present = target.armed.present(target.mappings, 0, 1 << 52).pages

        def dirtied(stride: int) -> None:
            target.sweep.sweep(stride=stride)
            # As a round does before it arms; so C, too, finds the page tables in the cache.
            target.read_state(min(pages, PRESENCE_PAGES_A_ROUND))

        def ours(stride: int = 1) -> float:
            dirtied(stride)
            started = time.thread_time_ns()
            target.armed.scan_and_protect(target.mappings, present)
            return time.thread_time_ns() - started

        def floor(program: ScanFloor, stride: int = 1) -> float:
            dirtied(stride)
            return program.scan().cpu_ns

        found = pairs(ours, lambda: floor(same), count)
        each, its_floor = found.measured.median / pages, found.floor.median / pages
        note = f"{number(each)} ns a page, floor {number(its_floor)}"
        yield of_pairs(f"{name} / C, the same call", found.times(1e-6), "ms", _GOAL, note)
        if mib == 1024:
            found = pairs(ours, lambda: floor(full), count)
            note = "C that asks for all categories leaves the kernel's quick way"
            yield of_pairs(f"{name} / C, all categories", found.times(1e-6), "ms", note=note)
            found = pairs(lambda: ours(2), lambda: floor(same, 2), count)
            note = "as fragmented as can be: the price of sets made from single pages"
            yield of_pairs(f"{name}, every other page / C", found.times(1e-6), "ms", note=note)
