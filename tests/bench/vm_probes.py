"""The cost of the log by fentry and by kprobe, in an emulated machine: many kernels that a benchmark runs on
allow neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from tests.bench.figures import Interval, Pairs
from tests.bench.guest_probes import PAIRS
from tests.bench.results import Row, not_run, of_pairs
from tests.vm import initramfs, kernels, machine
from tests.workloads.driver import build

_KERNEL = "6.12"
_PYTHON = machine.PROJECT / ".venv/bin/python"
_TIMEOUT_S = 3000.0
_NOTE = "emulated: says which is cheaper, not by how much on a processor"


def rows(quick: bool) -> Iterator[Row]:
    """Measure a first write after an arm, traced by each kind of probe."""
    try:
        build()  # here: the guest sees the programs, and a compiler would take too long in it
        with machine.Vm(_KERNEL) as vm:
            found = _measured(vm, 7 if quick else 31)
            release = vm.kernel.release
    except (machine.VmError, kernels.KernelError, initramfs.InitramfsError, OSError) as e:
        yield not_run(_name("fentry / kprobe"), " ".join(str(e).split())[:200])
        return
    for one, other in PAIRS:
        yield of_pairs(
            _name(f"{one} / {other}"), found[one, other], "ns", note=f"{_NOTE}; {release}"
        )


def _name(pair: str) -> str:
    return f"first write in a VM: {pair.replace('-', ' ')}"


def _measured(vm: machine.Vm, count: int) -> dict[tuple[str, str], Pairs]:
    done = vm.run(
        [str(_PYTHON), "-m", "tests.bench.guest_probes", str(count)],
        env={"PYTHONPATH": str(machine.PROJECT), "PATH": os.environ["PATH"]},
        timeout_s=_TIMEOUT_S,
    )
    if done.exit_code:
        raise machine.VmError(f"the guest failed: {done.stderr.decode()[-500:]}")
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return {(a["one"], a["other"]): _pairs(a) for a in answer}


def _pairs(answer: dict[str, Any]) -> Pairs:
    return Pairs(*(Interval(**answer[name]) for name in ("measured", "floor", "ratio")))
