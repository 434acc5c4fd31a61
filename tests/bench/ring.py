"""The speed at which the ring of events is drained, and whether it keeps up with two faulting threads."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from redirty.collector.bpf.loader import Options

from tests.bench.figures import interval
from tests.bench.results import Row
from tests.bench.target import SLOT, Probe, Target, armed_sweep, cpus
from tests.workloads.driver import Sweep

_GOAL_PER_S = 4e6
_RING_BYTES = 64 << 20
_MIB = 512  # its pages fit into the ring
_TICK_S = 0.02  # how often a session polls


def rows(quick: bool) -> Iterator[Row]:
    """Measure the rate on one processor, and a flood."""
    cpu, _ = cpus()
    with Probe(Options(events=True, ring_bytes=_RING_BYTES)) as probe:
        with armed_sweep(_MIB, cpu) as target:
            probe.tracer.set_target(target.sweep.pid, target.sweep.pid, SLOT)
            yield from _rates(probe, target, 5 if quick else 21)
        yield _flood(probe, 2 if quick else 10)


def _rates(probe: Probe, target: Target, count: int) -> Iterator[Row]:
    ring = probe.tracer.ring
    assert ring is not None
    taking, analysing = [], []
    for _ in range(count):
        target.first_writes()
        events = 0
        spent = used = 0
        while True:
            started = time.process_time_ns()
            records = ring.take()
            spent += time.process_time_ns() - started
            if len(records) == 0:
                break
            started = time.process_time_ns()
            np.unique(records["address"])
            used += time.process_time_ns() - started
            events += len(records)
        probe.empty()
        taking.append(events / spent * 1e9)
        analysing.append(events / (spent + used) * 1e9)
    per = {"unit": "M/s", "goal": _GOAL_PER_S / 1e6, "at_least": True}
    yield Row("ring: events taken on a core", figure=interval(taking).times(1e-6), **per)  # type: ignore[arg-type]
    yield Row(
        "ring: taken, and np.unique of their addresses",
        figure=interval(analysing).times(1e-6),
        unit="M/s",
        note="for scale",
    )


def _flood(probe: Probe, seconds: int) -> Row:
    """Have two threads fault at full speed while the ring is drained as a session does it."""
    ring = probe.tracer.ring
    assert ring is not None
    probe.empty()
    with Sweep(1, threads=2) as sweep:
        probe.tracer.set_target(sweep.pid, sweep.pid, SLOT)
        sweep.send("flood", seconds, 2, "mib=2")
        events = 0
        end = time.monotonic() + seconds + 0.2
        while time.monotonic() < end:
            time.sleep(_TICK_S)
            events += len(ring.take())
        answer = sweep.receive(seconds + 60)
        events += len(ring.take())
        lost = probe.empty()
    rate = float(answer["faults_per_s"])
    note = f"{events:,} events of {answer['pages']:,} faults taken, at {rate / 1e6:.2f} M faults/s"
    return Row(
        "ring: events lost while two threads fault",
        figure=interval([float(lost)]),
        unit="events",
        goal=0,
        note=note,
    )
