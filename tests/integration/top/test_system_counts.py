"""Write faults of all processes, counted in the kernel, compared with what programs report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redirty.collector.arming.fault_cost import fault_s
from redirty.collector.bpf.system_counts import SystemCounts
from redirty.tui.readers.overview import by_pid

from tests.support.tested_methods import arm_method
from tests.workloads.driver import Flusher, Sweep

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.fixture(scope="module")
def counts(tracing: None) -> Iterator[SystemCounts]:
    opened = SystemCounts()
    yield opened
    opened.close()


def faults_of(counts: SystemCounts, pid: int) -> tuple[int, int]:
    found = by_pid(counts.read()).get(pid, (0, 0))
    return int(found[0]), int(found[1])


def test_first_touches_are_counted(counts: SystemCounts) -> None:
    with Sweep(1) as sweep:
        before = faults_of(counts, sweep.pid)
        sweep.touch(mib=64)
        after = faults_of(counts, sweep.pid)
    pages = 64 << 8
    assert pages <= after[0] - before[0] <= pages + 200
    if "first_touch" in counts.hooks:
        assert pages <= after[1] - before[1] <= pages + 200


def test_tlb_flushes_are_counted(counts: SystemCounts) -> None:
    if "tlb" not in counts.hooks:
        pytest.skip("this kernel has no tracepoint for TLB flushes")
    with Flusher(mib=16) as flusher:
        before = by_pid(counts.read()).get(flusher.pid, (0,) * 6)
        flusher.flush("mprotect", count=100, pages=8)
        after = by_pid(counts.read())[flusher.pid]
    flushes = max(after[4] - before[4], after[5] - before[5])
    assert 100 <= flushes <= 130


def test_a_forgotten_process_is_counted_from_zero(counts: SystemCounts) -> None:
    with Sweep(1) as sweep:
        sweep.touch(mib=1)
        assert faults_of(counts, sweep.pid)[0] > 0
        counts.forget(sweep.pid)
        assert sweep.pid not in by_pid(counts.read())
        sweep.touch(mib=1)
        assert 256 <= faults_of(counts, sweep.pid)[0] < 700


def test_no_events_are_lost_while_there_is_room(counts: SystemCounts) -> None:
    assert counts.read().lost == 0


def test_the_cost_of_a_fault_is_measured() -> None:
    assert fault_s(arm_method()) > 0
