"""What every page fault of the machine pays while some other process is traced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from redirty.collector.attach.tracer import Options

from tests.bench.figures import pairs
from tests.bench.table import Row, of_pairs
from tests.bench.target import SLOT, Probe, cpu_ns, cpus, pinned
from tests.workloads.driver import Sweep, SweepTime

_GOAL = 1.016
_MIB = 32


def rows(quick: bool) -> Iterator[Row]:
    """First touch of fresh memory, and of a mapped file (as lmbench's lat_pagefault)."""
    count = 21 if quick else 151
    cpu, _ = cpus()
    with (
        tempfile.TemporaryDirectory() as directory,
        Sweep(1, wrapper=pinned(cpu)) as bystander,
        Sweep(1) as target,
        Probe(Options()) as probe,
    ):
        file = Path(directory) / "file"
        file.write_bytes(b"x" * (_MIB << 20))
        probe.tracer.set_target(target.pid, target.pid, SLOT)

        def timed(what: Callable[[], SweepTime]) -> float:
            before = cpu_ns(bystander.pid)
            pages = what().pages
            return (cpu_ns(bystander.pid) - before) / pages

        for name, what in (
            ("fresh memory", lambda: bystander.touch(_MIB)),
            ("a mapped file", lambda: bystander.filetouch(file)),
        ):

            def attached(what: Callable[[], SweepTime] = what) -> float:
                probe.attach()
                return timed(what)

            def untraced(what: Callable[[], SweepTime] = what) -> float:
                probe.detach()
                return timed(what)

            found = pairs(attached, untraced, count)
            yield of_pairs(f"first touch of {name}, not the target / untraced", found, "ns", _GOAL)
