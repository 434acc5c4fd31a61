"""Runs in the test VM: the same phases under every arming method and every probe, as JSON.

Usage: guest_probes.py DIRECTORY [ARM,...] [PROBE,...]. The directory must be on a real file system: the workload's
files are made there. Pages are given as page indices within their area, in inclusive ranges, so that runs can
be compared whose areas are at different addresses.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.pageset import PageSet, page_numbers
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import Pids
from redirty.collector.tracking.rounds import Recorder, SpaceRound

from tests.vm.guest_phases import AREAS, Truth, Written, steps
from tests.workloads.driver import Area, Phases


def ranges(indices: set[int]) -> list[list[int]]:
    """Return sorted inclusive ranges."""
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return found


def within(area: Area, pages: PageSet) -> set[int]:
    """Return the pages that are in an area, as indices within it."""
    numbers = page_numbers(pages)
    inside = (numbers >= area.first_page) & (numbers < area.first_page + area.page_count)
    return {int(page) - area.first_page for page in numbers[inside]}


def compared(truth: Truth, written: Written, seen: SpaceRound) -> dict[str, Any]:
    """Return by area: what was certainly written and re-dirtied, and what redirty reports."""
    indices = {name: truth.indices(name, pages) for name, pages in written.items()}
    answer = {}
    for name, area in truth.phases.areas.items():
        pages = indices.get(name, set())
        answer[name] = {
            "truth": ranges(pages),
            "truth_redirtied": ranges(pages & truth.present.get(name, set())),
            "log": ranges(within(area, seen.log)),
            "missed": ranges(within(area, seen.missed)),
            "dirty": ranges(within(area, seen.dirty)),
            "redirtied": ranges(within(area, seen.redirtied)),
        }
    truth.end_phase(indices)
    return answer


def run(directory: str, arm: str, tracer: Tracer, injector: Injector) -> dict[str, Any]:
    """Run all phases under one arming method, with a tracer that is attached."""
    started = time.monotonic()
    rounds = []
    with Phases(AREAS, threads=2, directory=directory) as phases:
        truth = Truth(phases, arm)
        recorder = Recorder(tracer, Pids([phases.pid]), arm, injector)
        try:
            recorder.begin()
            for name, step in steps(truth):
                written = step()
                result = recorder.end_round()
                (seen,) = (space for space in result.spaces if space.pid == phases.pid)
                stats = seen.stats[0]
                rounds.append(
                    {
                        "name": name,
                        "areas": compared(truth, written, seen),
                        "log_pages": len(seen.log),
                        "kinds": stats["kinds"].tolist(),
                        "lost": int(stats["lost"]),
                        "hist_pages": int(seen.hist.sum()) + len(seen.first_writes.raced or ()),
                        "tlb_flushes": stats["tlb"]["flushes"].tolist(),
                        "tlb_ns": stats["tlb"]["ns"].tolist(),
                    }
                )
        finally:
            recorder.close()
    return {
        "arm": arm,
        "probe": tracer.probe,
        "attached": sorted(tracer.hooks),
        "rounds": rounds,
        "took_s": time.monotonic() - started,
    }


def check_processor() -> None:
    """Fail on an emulated processor that sorts wrongly, which would prove nothing: sets of pages are sorted."""
    random = np.random.default_rng(1)
    for count in range(2, 200):
        numbers = random.integers(0, 1 << 58, count, dtype=np.uint64)
        if numbers[np.argsort(numbers)].tolist() != sorted(numbers.tolist()):
            raise SystemExit("numpy's argsort is wrong on this machine's processor")


def main() -> int:
    """Run all methods and probes."""
    check_processor()
    arms = sys.argv[2].split(",") if len(sys.argv) > 2 else ["uffd", "soft-dirty"]
    probes = sys.argv[3].split(",") if len(sys.argv) > 3 else ["fentry", "kprobe", "tracepoint"]
    injector = Injector()
    found = []
    try:
        for probe in probes:
            started = time.monotonic()
            tracer = Tracer(Options(probe=probe))
            print(f"{probe}: loaded in {time.monotonic() - started:.1f} s", file=sys.stderr)
            try:
                found += [run(sys.argv[1], arm, tracer, injector) for arm in arms]
            finally:
                tracer.close()
    finally:
        injector.close()
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
