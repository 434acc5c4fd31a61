"""Tests of devices and qdiscs from tests/integration/predict/test_link.py that the kernel this runs on may lack,
in an emulated machine: Debian's has them all. It takes minutes: REDIRTY_TEST_KERNELS=6.12 runs it.
"""

from __future__ import annotations

import os

import pytest

from tests.vm.guest import PYTHON, booted
from tests.vm.machine import despite_the_emulator

PYTEST = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider")
MODULES = "8021q bonding dummy veth sch_fq sch_cake sch_netem sch_tbf sch_htb sch_hfsc"
OF_SOME_KIND = "other_qdiscs or lies_on or bond or of_a_class"


KERNELS = [name for name in os.environ.get("REDIRTY_TEST_KERNELS", "").split(",") if name]


@pytest.mark.skipif(not KERNELS, reason="takes minutes; REDIRTY_TEST_KERNELS=6.12 runs it")
@pytest.mark.parametrize("kernel", KERNELS)
@despite_the_emulator
def test_links_of_all_kinds(kernel: str) -> None:
    with booted(kernel=kernel) as vm:
        done = vm.run(["sh", "-c", f"/usr/sbin/modprobe -a {MODULES}"])
        assert done.exit_code == 0, done.stderr.decode()
        done = vm.run(
            [*PYTEST, "tests/integration/predict/test_link.py", "-k", OF_SOME_KIND],
            env={"REDIRTY_REQUIRE": "1"},
        )
    output = done.stdout.decode()
    assert done.exit_code == 0, output[-6000:]
    assert "skipped" not in output, output[-3000:]
