"""The cost of a first write after an arm, traced and only armed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from redirty.collector.bpf.loader import Options

from tests.bench import rivals
from tests.bench.figures import pairs
from tests.bench.results import Row, not_run, of_pairs
from tests.bench.target import SLOT, EmptyProgram, Probe, Target, armed_sweep, cpus

_MIB = 16
_BITMAP_GOAL, _EVENTS_GOAL = 1.05, 1.45


def rows(quick: bool) -> Iterator[Row]:
    """Measure the in-kernel bitmap, the ring of events, and the tools one would use instead."""
    count = 15 if quick else 101
    target_cpu, tracer_cpu = cpus()
    with armed_sweep(_MIB, target_cpu) as target:
        unarmed = min(target.writes() for _ in range(5))
        yield _traced(target, "first write: bitmap / armed only", Options(), count, _BITMAP_GOAL)
        events = Options(events=True)
        name = "first write: --events / armed only"
        yield _traced(target, name, events, count, _EVENTS_GOAL)
        yield _empty(target, count)
        found = pairs(target.first_writes, target.writes, 7 if quick else 21)
        note = f"for scale: what arming itself costs; untouched at best {unarmed:.0f} ns"
        yield of_pairs("first write: armed only / untouched", found, "ns", note=note)
        yield from rivals.rows(target, tracer_cpu, quick)


def _traced(target: Target, name: str, options: Options, count: int, goal: float) -> Row:
    lost = 0
    with Probe(options) as probe:
        probe.tracer.set_target(target.sweep.pid, target.sweep.pid, SLOT)

        def traced() -> float:
            nonlocal lost
            probe.attach()
            probe.tracer.flip()
            ns = target.first_writes()
            lost += probe.empty()
            return ns

        def armed_only() -> float:
            probe.detach()
            return target.first_writes()

        found = pairs(traced, armed_only, count)
        note = f"probe: {probe.tracer.probe}" + (f"; {lost} events lost" if options.events else "")
        return of_pairs(name, found, "ns", goal, note)


def _empty(target: Target, count: int) -> Row:
    name = "first write: an empty BPF program / armed only"
    try:
        program = EmptyProgram()
    except OSError as e:
        return not_run(name, f"the kernel refuses it: {e}")
    with contextlib.closing(program):

        def attached() -> float:
            program.attach()
            return target.first_writes()

        def armed_only() -> float:
            program.detach()
            return target.first_writes()

        note = "for scale: the least a program on this tracepoint costs"
        return of_pairs(name, pairs(attached, armed_only, count), "ns", note=note)
