"""The cost of tracing another process to every page fault of the machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from redirty.collector.bpf.loader import Options

from tests.bench.figures import Pairs, pairs
from tests.bench.results import Row, not_run, of_pairs
from tests.bench.target import SLOT, EmptyProgram, Probe, cpu_ns, cpus, pinned
from tests.workloads.driver import Sweep, SweepTime

_GOAL = 1.016
_MIB = 32
_FILE_MIB, _FILE_TIMES = 128, 10  # many of a mapped file's pages come with one fault


def rows(quick: bool) -> Iterator[Row]:
    """Measure first touches of fresh memory, and of a mapped file (as lmbench's lat_pagefault)."""
    count = 21 if quick else 151
    cpu, _ = cpus()
    with (
        tempfile.TemporaryDirectory() as directory,
        Sweep(1, wrapper=pinned(cpu)) as bystander,
        Sweep(1) as target,
        Probe(Options()) as probe,
    ):
        probe.tracer.set_target(target.pid, target.pid, SLOT)
        file = Path(directory) / "file"
        file.write_bytes(b"x" * (_FILE_MIB << 20))

        def memory() -> float:
            return _cost(bystander, lambda: bystander.touch(_MIB), 1)

        def mapped() -> float:
            return _cost(bystander, lambda: bystander.filetouch(file), _FILE_TIMES)

        yield from _kind("fresh memory", memory, probe, count)
        yield from _kind("a mapped file", mapped, probe, count)


def _cost(bystander: Sweep, what: Callable[[], SweepTime], times: int) -> float:
    """Return ns per page, of processor time."""
    what()  # attaching and detaching programs changes the kernel's code, and leaves its caches cold
    before = cpu_ns(bystander.pid)
    pages = sum(what().pages for _ in range(times))
    return (cpu_ns(bystander.pid) - before) / pages


def _kind(name: str, cost: Callable[[], float], probe: Probe, count: int) -> Iterator[Row]:
    title = f"first touch of {name}:"
    found = _on_and_off(probe, cost, count)
    yield of_pairs(f"{title} traced, not the target / untraced", found, "ns", _GOAL)
    empty = f"{title} an empty program / untraced"
    try:
        program = EmptyProgram()
    except OSError as e:
        yield not_run(empty, f"the kernel refuses it: {e}")
        return
    with contextlib.closing(program):
        note = "for scale: the least a program on this tracepoint costs"
        yield of_pairs(empty, _on_and_off(program, cost, count), "ns", note=note)


def _on_and_off(programs: Probe | EmptyProgram, cost: Callable[[], float], count: int) -> Pairs:
    def on() -> float:
        programs.attach()
        return cost()

    def off() -> float:
        programs.detach()
        return cost()

    found = pairs(on, off, count)
    programs.detach()
    return found
