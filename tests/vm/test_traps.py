"""The traps (tests/traps) in emulated machines with Debian's kernel 6.12: those marked for it, with the two kinds
of probe that the host may not have, and with both arming methods.

`make test-kernels` runs all, on every kernel, in every way; test_probes.py and test_tlb.py cover those that are left
out here, too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vm.guest import KERNEL
from tests.vm.matrix import TABLE, Choice, report, run_kernel

WAYS = ("fentry+uffd", "kprobe+soft-dirty")


def only(way: str) -> Choice:
    """Return one way."""
    return lambda ways: [w for w in ways if w.partition(":")[0] == way]


@pytest.mark.parametrize("way", WAYS)
def test_traps(way: str, record_property: Callable[[str, object], None]) -> None:
    found = run_kernel(KERNEL, marked=True, chosen=only(way))
    record_property(TABLE, report([found]))
    assert found.failures == []
    assert len(found.runs) == 1, f"it does not have {way}"
