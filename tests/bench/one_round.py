"""Rounds of a recorder in a process of its own: one_round MIB KIND DIRTY_PAGES ROUNDS.

Prints, as JSON, the processor time of each round (its end, and writing it to disk), where it goes, and how far the
resident memory rose above what it was when the target was about to be armed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.linux.malloc import retain_freed_memory, trim_heap
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.recording.writer import Meta, RecordingWriter
from redirty.collector.target.targets import Pids
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.tracking.rounds import Recorder

from tests.bench.figures import median
from tests.bench.target import cpus, pinned
from tests.workloads.driver import Sweep

T = TypeVar("T")


class Parts:
    """Processor time by part of a round, without the parts inside them."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, int]] = []

    def start(self) -> None:
        """Start the next round."""
        self.rounds.append({})

    def timed(self, name: str, call: Callable[..., T]) -> Callable[..., T]:
        """Return the call, counted under a name."""

        def timed(*arguments: Any, **more: Any) -> T:
            started = time.process_time_ns()
            try:
                return call(*arguments, **more)
            finally:
                spent = time.process_time_ns() - started
                if self.rounds:
                    self.rounds[-1][name] = self.rounds[-1].get(name, 0) + spent

        return timed

    def medians(self) -> dict[str, float]:
        """Return the ns of each part in the middle round."""
        names = dict.fromkeys(name for spent in self.rounds for name in spent)
        return {n: median([spent.get(n, 0) for spent in self.rounds]) for n in names}


def memory_kib(name: str) -> int:
    """Return VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def main() -> None:
    """Record, and print the figures."""
    mib, kind, dirty, rounds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    retain_freed_memory()  # as a session does
    target_cpu, own_cpu = cpus()
    parts = Parts()
    # Spread out, so that the pages are not a single run, when few are dirty.
    stride = max(1, mib * 256 // dirty) if dirty < 100_000 else 1
    injector = Injector()
    with Sweep(mib, kind, wrapper=pinned(target_cpu)) as sweep, tempfile.TemporaryDirectory() as d:
        os.sched_setaffinity(0, {own_cpu})
        tracer = Tracer(Options())
        for name in ("drain", "take_stats"):
            setattr(tracer, name, parts.timed(name, getattr(tracer, name)))
        for name in ("look", "arm", "settle"):
            setattr(AddressSpace, name, parts.timed(name, getattr(AddressSpace, name)))
        recorder = Recorder(tracer, Pids([sweep.pid]), "uffd", injector)
        trim_heap()
        before_kib = memory_kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
        recorder.begin()
        meta = Meta({}, tracer.probe, "uffd", 1.0, "", tracer.hooks)
        recording = RecordingWriter(Path(d) / "recording", meta)
        recording._sums_due = float("inf")  # apart, at the end
        add = parts.timed("record", recording.add)
        cpu_ns, found = [], 0
        for number in range(rounds + 1):
            sweep.sweep(stride=stride, count=dirty)
            if number:
                parts.start()
            started = time.process_time_ns()
            result = recorder.end_round()
            add(result)
            spent = time.process_time_ns() - started
            if number:  # the first one also reads what was present before
                cpu_ns.append(spent)
            found = sum(len(space.dirty) for space in result.spaces)
        added_kib = memory_kib("VmHWM") - before_kib
        started = time.process_time_ns()
        recording.close(complete=True)
        sums_ns = time.process_time_ns() - started
        recorder.close()
        tracer.close()
    injector.close()
    answer = {
        "cpu_ns": cpu_ns,
        "parts_ns": parts.medians(),
        "dirty": found,
        "added_kib": added_kib,
        "sums_ns": sums_ns,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
