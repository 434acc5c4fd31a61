"""Runs in the machine that vm_probes.py boots: a first write after an arm, by kind of probe, as JSON.

Usage: python -m tests.bench.guest_probes PAIRS
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from redirty.collector.bpf.loader import Options

from tests.bench.figures import pairs
from tests.bench.target import SLOT, Probe, Target, armed_sweep, cpus

_MIB = 4
_SWEEPS = 15
ARMED_ONLY = "armed-only"
PAIRS = (
    ("fentry", ARMED_ONLY),
    ("kprobe", ARMED_ONLY),
    ("tracepoint", ARMED_ONLY),
    ("kprobe", "fentry"),
)


def main() -> int:
    """Measure all pairs by turns."""
    count = int(sys.argv[1])
    found = []
    with armed_sweep(_MIB, cpus()[0]) as target, contextlib.ExitStack() as stack:
        probes: dict[str, Probe] = {}
        for name in ("fentry", "kprobe", "tracepoint"):
            probe = stack.enter_context(Probe(Options(probe=name)))
            probe.tracer.set_target(target.sweep.pid, target.sweep.pid, SLOT)
            probe.detach()
            probes[name] = probe
        for one, other in PAIRS:
            result = pairs(cost(target, probes, one), cost(target, probes, other), count)
            found.append({"one": one, "other": other, **asdict(result)})
    json.dump(found, sys.stdout)
    return 0


def cost(target: Target, probes: dict[str, Probe], name: str) -> Callable[[], float]:
    """Return a function that measures ns per page with one kind of probe attached and no other, or with none."""

    def measure() -> float:
        for other, probe in probes.items():
            if other != name:
                probe.detach()
        if name == ARMED_ONLY:
            return least(target)
        probe = probes[name]
        probe.attach()
        probe.tracer.flip()
        ns = least(target)
        probe.empty()
        return ns

    return measure


def least(target: Target) -> float:
    """Return ns per page of the fastest of some sweeps.

    The emulator has to translate code anew that an attachment changed, and its own processors may be taken from it at
    any time.
    """
    return min(target.first_writes() for _ in range(_SWEEPS))


if __name__ == "__main__":
    sys.exit(main())
