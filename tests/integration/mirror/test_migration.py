"""A real migration of a small guest, recorded and compared as the benchmark does, from end to end.

Times decide nothing: all figures have to be present and consistent, and the guest's program has to find its
memory unchanged.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from redirty.collector.analyze.load import load_mappings, load_zeros

from tests.bench.migration import run, table
from tests.bench.migration.results import Load, Predicted, Real, Sample, read
from tests.bench.migration.verdicts import compare, summary
from tests.bench.migration.workloads import PAGE_BYTES, writer
from tests.support.waiting import PATIENCE_S
from tests.tiers import require, require_program, require_root
from tests.vm.kernels import KernelError, fetch

AREA_MIB = 16
# Far above what this write rate needs: the migration ends however busy the machine is.
TIMES_CRITICAL = 12.0


def test_a_migration_of_a_guest_is_recorded_and_compared(tmp_path: Path) -> None:
    require_root()
    require_program("qemu-system-x86_64", "qemu-system-x86")
    try:
        kernel = fetch(run.KERNEL)
    except KernelError as e:
        require(False, f"needs a guest kernel: {e}")
        raise
    settings = run.settings_of(kernel, 0.3, PATIENCE_S, 1e9, "1s", 2)
    plan = run.Plan(tmp_path / "out", settings, kernel, [TIMES_CRITICAL])
    run.prepare(plan)
    # This raises if the guest did not arrive, or found a page that differs from what it wrote.
    run.measure(plan, writer("cyclic", 2_000, AREA_MIB, memory_mib=160))

    (load,) = read(plan.out, Load)
    assert load.memory_bytes == (160 << 20) - 8192
    assert 0 < load.zero_bytes < load.memory_bytes
    # Zero pages are counted by redirty, and a second later by the benchmark.
    zeros = load_zeros(plan.out / run.RECORDINGS / "cyclic")
    mappings = load_mappings(plan.out / run.RECORDINGS / "cyclic")
    ram = mappings.iloc[int((mappings["end"] - mappings["start"]).to_numpy().argmax())]
    zeros = zeros[(zeros["start"] >= ram["start"]) & (zeros["end"] <= ram["end"])]
    counted = zeros["pages"].sum() - zeros["present_pages"].sum() + zeros["zero_pages"].sum()
    assert counted * PAGE_BYTES == pytest.approx(load.zero_bytes, rel=0.02)
    (moved,) = read(plan.out, Real)
    assert moved.status == "completed"
    assert moved.guest_wrong == 0
    assert moved.guest_writes is not None and moved.guest_writes > 0
    assert moved.syncs >= 3
    # Every page that is not zero was sent at least once, and all others were scanned. The guest's programs
    # may have freed memory in between.
    present = load.memory_bytes - load.zero_bytes
    assert moved.transferred_bytes > max(0.9 * present, AREA_MIB << 20)
    assert moved.transferred_bytes > moved.normal_pages * PAGE_BYTES
    assert (moved.normal_pages + moved.zero_pages) * PAGE_BYTES >= load.memory_bytes
    assert moved.downtime_s is not None and 0 <= moved.downtime_s <= moved.total_s
    assert moved.total_s * moved.bandwidth > 0.5 * moved.transferred_bytes
    assert read(plan.out, Sample) or moved.total_s < 0.3

    predictions = read(plan.out, Predicted)
    assert [(p.workload, p.bandwidth) for p in predictions] == [("cyclic", moved.bandwidth)]
    rows = compare([load], [moved], predictions, settings.patience_s)
    print(table.workloads([load], rows) + table.migrations(rows) + table.problems(predictions))
    assert summary(rows).migrations == 1
