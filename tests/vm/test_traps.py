"""The traps (tests/traps) in an emulated machine with Debian's kernel 6.12, with every kind of probe
and way of arming: those that are marked for it. `make test-kernels` runs all, on every kernel, and the
two ways that are left out here, which test_probes.py sees, too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.guest import KERNEL
from tests.vm.matrix import Choice, report, run_kernel

LEFT_OUT = ("fentry+soft-dirty", "tracepoint+soft-dirty")


def every_other(first: int) -> Choice:
    """Half of the ways: a machine is busy with one processor, so there are two."""
    return lambda ways: [w for w in ways if w.partition(":")[0] not in LEFT_OUT][first::2]


@pytest.mark.timeout(1800)
def test_traps(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        halves = [every_other(first) for first in range(2)]
        found = list(pool.map(lambda half: run_kernel(KERNEL, marked=True, chosen=half), halves))
    with capsys.disabled():
        print(f"\n{report(found)}")
    assert [line for part in found for line in part.failures] == []
    assert sum(len(part.runs) for part in found) == 4, "three kinds of probe, two ways of arming"
