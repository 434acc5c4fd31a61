"""Every trap on every kernel: boots each in an emulated machine, runs tests/traps in it, and prints one table
kernel x trap: pass, fail, or not applicable with the kernel's reason.

On each kernel the tests marked every_way are run with every kind of probe and arming method that it has, first
with what `auto` chooses there; then, except with --marked, all others with that. `make test-kernels`, or:

    .venv/bin/python -m tests.vm.matrix [--kernel 6.1 ...] [--jobs N] [--marked] [--keep DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.traps.results import Run, failed, render
from tests.vm import machine
from tests.vm.guest import PYTHON, REDIRTY, booted
from tests.vm.kernels import KERNELS

TIMEOUT_S = 3600.0
EVERY_WAY = "every_way"
TABLE = "table"  # the property of a test that has a table
# Two NUMA nodes, one processor each.
NUMA = (
    "-object",
    "memory-backend-ram,id=ram0,size=1280M",
    "-object",
    "memory-backend-ram,id=ram1,size=1280M",
    "-numa",
    "node,nodeid=0,cpus=0,memdev=ram0",
    "-numa",
    "node,nodeid=1,cpus=1,memdev=ram1",
)
# A file system with page_mkwrite, which tmpfs does not have, and
# that takes O_DIRECT.
PREPARE = """
set -e
truncate -s 512M /tmp/ext4.image
/usr/sbin/mkfs.ext4 -q /tmp/ext4.image
/usr/sbin/modprobe -a loop ext4
mkdir /tmp/ext4
mount -o loop /tmp/ext4.image /tmp/ext4
mkdir -m 1777 /tmp/ext4/tmp
"""

Choice = Callable[[list[str]], list[str]]


@dataclass
class KernelRun:
    """The results of one kernel's machine. trouble: why a part of it, or all, is missing."""

    kernel: str
    release: str = ""
    runs: list[Run] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    times: list[str] = field(default_factory=list)
    boot_s: float = 0.0
    took_s: float = 0.0

    @property
    def failures(self) -> list[str]:
        """Return a line for each failure."""
        return [*(f"{self.kernel}: {t}" for t in self.trouble), *failed(self.runs)]


def ways(check: dict[str, Any], marked: bool = False) -> list[str]:
    """Return the ways for guest_traps.py that `redirty check --json` offers.

    All of them for the marked tests, first what auto chooses; then that one for all other tests, unless only marked
    ones are requested.
    """
    probes = [name for name, answer in check["probes"].items() if answer["ok"]]
    arms = [name for name in ("uffd", "soft-dirty") if check["arming"][name]["ok"]]
    first = f"{check['auto']['probe']}+{check['auto']['arm']}"
    others = [f"{probe}+{arm}" for arm in arms for probe in probes]
    found = [f"{way}:{EVERY_WAY}" for way in (first, *(way for way in others if way != first))]
    return found if marked else [*found, f"{first}:not {EVERY_WAY}"]


def refusals(check: dict[str, Any]) -> dict[str, str]:
    """Return the ways that this kernel does not have, with its reason."""
    answers = {**check["probes"], **check["arming"]}
    wanted = (*check["probes"], "uffd", "soft-dirty")
    return {name: answers[name]["reason"] for name in wanted if not answers[name]["ok"]}


@machine.despite_the_emulator
def run_kernel(
    name: str, marked: bool = False, keep: Path | None = None, chosen: Choice = list
) -> KernelRun:
    """Boot one kernel and run the traps in it; a failure of the machine is in `trouble`, never raised.

    Args:
        marked: run only the tests marked every_way.
        keep: a directory for the output of each way.
        chosen: some of its ways.
    """
    found = KernelRun(name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="redirty-traps-") as scratch:
        share = keep / name if keep is not None else Path(scratch)
        share.mkdir(parents=True, exist_ok=True)
        for old in [*share.glob("*.json"), *share.glob("*.log")]:
            old.unlink()
        try:
            with booted(kernel=name, memory_mib=2560, qemu_args=NUMA, shares=[share]) as vm:
                found.release, found.boot_s = vm.kernel.release, vm.boot_s
                _run_in(vm, share, found, marked, chosen)
        except machine.EmulatorError:
            raise
        except (machine.VmError, pytest.fail.Exception) as error:
            found.trouble.append(str(error))
        for path in sorted(share.glob("*.json")):
            found.runs.append(Run.from_json(path.read_text()))
        if found.trouble:
            logs = sorted(share.glob("*.log"))
            found.trouble += [
                "\n".join(p.read_text(errors="replace").split("\n")[-30:]) for p in logs
            ]
    found.took_s = time.monotonic() - started
    return found


def _run_in(vm: machine.Vm, share: Path, found: KernelRun, marked: bool, chosen: Choice) -> None:
    done = vm.run(["sh", "-c", PREPARE])
    if done.exit_code:
        found.trouble.append(f"cannot prepare the machine: {done.stderr.decode()}")
        return
    done = vm.run([REDIRTY, "check", "--json"])
    if done.exit_code:
        found.trouble.append(f"redirty check: {done.stdout.decode()}{done.stderr.decode()}")
        return
    check = json.loads(done.stdout)
    found.refused = refusals(check)
    wanted = chosen(ways(check, marked))
    script = str(Path(__file__).with_name("guest_traps.py"))
    done = vm.run(
        [PYTHON, script, str(share), *wanted],
        env={"PYTHONPATH": str(machine.PROJECT), "TMPDIR": "/tmp/ext4/tmp"},
        timeout_s=TIMEOUT_S,
    )
    found.times = done.stdout.decode().splitlines()
    for number, way in enumerate(wanted):
        if not (share / f"{number}.json").exists():
            found.trouble.append(f"{way} did not come to its end: {done.stderr.decode()[-2000:]}")


def report(kernels: Sequence[KernelRun]) -> str:
    """Return the table, and below it what the kernels lack and how long each took."""
    lines = [render([run for kernel in kernels for run in kernel.runs]).rstrip()]
    for kernel in kernels:
        lines += [f"{kernel.kernel} has no {way}: {why}" for way, why in kernel.refused.items()]
    for kernel in kernels:
        lines.append(
            f"{kernel.kernel}: booted in {kernel.boot_s:.0f} s, {kernel.took_s:.0f} s in all"
        )
        lines += [f"    {line}" for line in kernel.times]
    failures = [line for kernel in kernels for line in kernel.failures]
    lines += ["", *(f"FAILED {line}" for line in failures)] if failures else ["no failures"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the kernels that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.matrix", description=__doc__)
    parser.add_argument(
        "--kernel", action="append", choices=KERNELS, help="repeatable; default all"
    )
    # A machine has two processors and is busy with one: its tests run one after the other.
    jobs = os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=int, default=jobs, metavar="N", help=f"machines at a time; default {jobs}"
    )
    parser.add_argument("--marked", action="store_true", help="only the tests marked every_way")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for pytest's output")
    options = parser.parse_args()
    os.environ["REDIRTY_REQUIRE"] = "1"
    started = time.monotonic()

    def one(name: str) -> KernelRun:
        found = run_kernel(name, options.marked, options.keep)
        passed = "failed" if found.failures else "passed"
        print(f"{name}: {passed} in {found.took_s:.0f} s", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        kernels = list(pool.map(one, options.kernel or list(KERNELS)))
    print(report(kernels), end="")
    print(f"{time.monotonic() - started:.0f} s in all")
    return any(kernel.failures for kernel in kernels)


if __name__ == "__main__":
    sys.exit(main())
