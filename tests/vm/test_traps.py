"""The traps (tests/traps) in an emulated machine with Debian's kernel 6.12, with every kind of probe
and way of arming: those that are marked for it. `make test-kernels` runs all, on every kernel."""

from __future__ import annotations

import pytest

from tests.vm.guest import KERNEL
from tests.vm.matrix import report, run_kernel


@pytest.mark.timeout(1800)
def test_traps(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_kernel(KERNEL, marked=True)
    with capsys.disabled():
        print(f"\n{report([found])}")
    assert found.failures == []
    assert len(found.runs) == 6, "three kinds of probe, two ways of arming"
