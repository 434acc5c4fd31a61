"""The traps (tests/traps) in emulated machines with Debian's kernel 6.12: those that are marked for it,
with the two kinds of probe that the host may not have, and with both ways of arming. `make
test-kernels` runs all, on every kernel, in every way; test_probes.py and test_tlb.py see those that are
left out here, too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vm.guest import KERNEL
from tests.vm.matrix import Choice, report, run_kernel

WAYS = ("fentry+uffd", "kprobe+soft-dirty")


def only(way: str) -> Choice:
    """One way: a machine is busy with one processor, so there is one for each."""
    return lambda ways: [w for w in ways if w.partition(":")[0] == way]


@pytest.mark.timeout(1800)
def test_traps(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda way: run_kernel(KERNEL, marked=True, chosen=only(way)), WAYS))
    with capsys.disabled():
        print(f"\n{report(found)}")
    assert [line for part in found for line in part.failures] == []
    assert [len(part.runs) for part in found] == [1, 1]
