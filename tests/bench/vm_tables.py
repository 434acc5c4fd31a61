"""Page tables moved from one node to another and back, next to the pages themselves, in an emulated machine with
two nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.bench.figures import Interval, Pairs, interval
from tests.bench.results import Row, not_run, of_pairs
from tests.vm import initramfs, kernels, machine
from tests.vm.guest import PYTHON
from tests.vm.test_pagetables import NODE_MIB, NODES
from tests.workloads.driver import build

_KERNEL = "6.12"
_MIB, _QUICK_MIB = 1024, 256
_TIMEOUT_S = 3000.0
_NOTE = "emulated: the ratio tells, not the time"


def rows(quick: bool) -> Iterator[Row]:
    """Measure the downtime for 1 GiB (quick: a quarter, scaled up) against move_pages(2), then first touches."""
    try:
        build()
        with machine.Vm(_KERNEL, memory_mib=2 * NODE_MIB, qemu_args=NODES) as vm:
            words = [str(_QUICK_MIB), "2", "15"] if quick else [str(_MIB), "6", "61"]
            done = vm.run(
                [PYTHON, "-m", "tests.bench.guest_tables", *words],
                env={"PYTHONPATH": str(machine.PROJECT)},
                timeout_s=_TIMEOUT_S,
            )
            if done.exit_code:
                raise machine.VmError(f"the guest failed: {done.stderr.decode()[-500:]}")
            found = json.loads(done.stdout)
    except (machine.VmError, kernels.KernelError, initramfs.InitramfsError, OSError) as e:
        yield not_run("page tables between nodes", " ".join(str(e).split())[:200])
        return
    for what, name in (("stopped_s", "downtime of the target"), ("moves_s", "of that the moves")):
        of_tables, of_pages = found[what], found["move_pages_s"]
        yield Row(
            f"page tables of 1 GiB to another node: {name} / move_pages of the same",
            f"{interval(of_tables).median:.2f} s",
            f"{interval(of_pages).median:.2f} s",
            interval([a / b for a, b in zip(of_tables, of_pages, strict=True)]),
            note=_NOTE,
        )
    touch = Pairs(*(Interval(**found["touch"][name]) for name in ("measured", "floor", "ratio")))
    yield of_pairs(
        "first touch by a target moved to another node / an untouched one",
        touch,
        "ns",
        note=_NOTE,
    )
