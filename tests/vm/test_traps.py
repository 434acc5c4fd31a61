"""The traps (tests/traps) in an emulated machine with Debian's kernel 6.12, with every kind of probe
and way of arming: those that are marked for it. `make test-kernels` runs all, on every kernel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.guest import KERNEL
from tests.vm.matrix import report, run_kernel


@pytest.mark.timeout(1800)
def test_traps(capsys: pytest.CaptureFixture[str]) -> None:
    # A machine is busy with one processor: every other way in a second one.
    with ThreadPoolExecutor(2) as pool:
        parts = (slice(0, None, 2), slice(1, None, 2))
        found = list(pool.map(lambda part: run_kernel(KERNEL, marked=True, part=part), parts))
    with capsys.disabled():
        print(f"\n{report(found)}")
    assert [line for part in found for line in part.failures] == []
    assert sum(len(part.runs) for part in found) == 6, "three kinds of probe, two ways of arming"
