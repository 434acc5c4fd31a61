"""Page tables moved: how long the target is stopped, and what its page faults cost afterwards.

This machine may have one node: the tables are made anew where they are, which is the same work. Between two nodes,
and next to move_pages(2): vm_tables.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from redirty.collector.pagetables.relocation import trial_s

from tests.bench.figures import interval, pairs
from tests.bench.results import Row, of_pairs
from tests.bench.target import cpu_ns
from tests.support.mapped_program import Mapped
from tests.support.relocation_loop import Relocator
from tests.workloads.driver import Sweep

_GIB_TABLES = 512
_MIB = 1024
_REGIONS = 64  # of a step: some milliseconds
_TOUCHED_MIB = 32
_GOAL = 1.016  # as of the faults of bystanders


def rows(quick: bool) -> Iterator[Row]:
    """Measure the pause for 1 GiB next to the bare system calls, and first touches after a move."""
    count = 3 if quick else 11
    with (
        Mapped("private", _MIB) as target,
        contextlib.closing(Relocator(target.pid, _REGIONS)) as one,
    ):
        one.round()
        stopped, floor = [], []
        for _ in range(count):
            one.stopped_s = one.moves_s = 0.0
            _, tables, _ = one.round()
            stopped.append(one.stopped_s / tables * _GIB_TABLES)
            floor.append(trial_s() * _GIB_TABLES)
        ms = interval([s * 1e3 for s in stopped])
        yield Row(
            "page tables of 1 GiB moved: downtime of the target",
            figure=ms,
            unit="ms",
            note=f"in steps of {_REGIONS * 2} MiB",
        )
        yield Row(
            "the same / mremap there and back of our own memory",
            f"{ms.median:.1f} ms",
            f"{interval([s * 1e3 for s in floor]).median:.1f} ms",
            interval([a / b for a, b in zip(stopped, floor, strict=True)]),
        )
    with (
        Sweep(1) as moved,
        Sweep(1) as untouched,
        contextlib.closing(Relocator(moved.pid, 16)) as one,
    ):
        one.round()
        found = pairs(lambda: touch_ns(moved), lambda: touch_ns(untouched), 21 if quick else 151)
        yield of_pairs("first touch by a moved target / an untouched one", found, "ns", _GOAL)


def touch_ns(program: Sweep) -> float:
    """Return ns per page, of processor time."""
    before = cpu_ns(program.pid)
    pages = program.touch(_TOUCHED_MIB).pages
    return (cpu_ns(program.pid) - before) / pages
