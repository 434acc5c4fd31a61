"""Migration runs: each workload in a guest that is recorded once and then migrates again and again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redirty.collector import VERSION

from tests.bench.migration.guests import GuestError, Machine
from tests.bench.migration.memory import ram, zero_pages
from tests.bench.migration.move import Terms, dirty_rate, move
from tests.bench.migration.predict import predict, record, written
from tests.bench.migration.qmp import QmpError
from tests.bench.migration.results import (
    Load,
    Predicted,
    Settings,
    append,
    read,
    read_settings,
    write_settings,
)
from tests.bench.migration.workloads import PAGE_BYTES, Workload, critical_bandwidth
from tests.support.redirty_cli import ProgramError
from tests.support.servers import scratch
from tests.vm.kernels import Kernel

KERNEL = "6.1"
RECORDINGS = "recordings"
_SETTLED_LINES = 5
# Failures of a guest, or of what asks it.
TROUBLE = (GuestError, QmpError, ProgramError, OSError)


@dataclass(frozen=True)
class Plan:
    """The plan of a run. factors: bandwidths, as multiples of each guest's critical one."""

    out: Path
    settings: Settings
    kernel: Kernel
    factors: Sequence[float]


def settings_of(
    kernel: Kernel, downtime_s: float, patience_s: float, last: float, interval: str, rounds: int
) -> Settings:
    """Return the settings with the versions of what is measured."""
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    )
    qemu = version.stdout.splitlines()[0]
    return Settings(
        downtime_s, patience_s, last, interval, rounds, kernel.release, qemu, str(VERSION)
    )


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def prepare(plan: Plan) -> None:
    """Create the output folder, which must not be in use.

    Raises: OSError.
    """
    (plan.out / RECORDINGS).mkdir(parents=True)
    write_settings(plan.out, plan.settings)


def measure(plan: Plan, load: Workload) -> None:
    """Measure one workload: boot, record, predict all, migrate at each bandwidth.

    Raises: TROUBLE.
    """
    with scratch("migration") as work:
        machine = Machine(work, 0, plan.kernel, load)
        try:
            machine.wait_lines(_SETTLED_LINES)
            found = recorded(plan, load, machine)
            append(plan.out, [found])
            say(f"{load.name}: critical at {found.critical_bytes_per_s / 2**20:.1f} MiB/s")
            bandwidths = [round(found.critical_bytes_per_s * factor) for factor in plan.factors]
            recording = plan.out / RECORDINGS / load.name
            for bandwidth in bandwidths:
                append(plan.out, [predict(found, recording, bandwidth, plan.settings)])
            # The fastest first: a guest that does not survive a migration shows early.
            for number, bandwidth in enumerate(sorted(bandwidths, reverse=True), 1):
                machine = _moved(plan, load, machine, work, number, bandwidth)
        finally:
            machine.close()


def _moved(
    plan: Plan, load: Workload, machine: Machine, work: Path, number: int, bandwidth: int
) -> Machine:
    """Migrate; return the machine in which the guest is afterwards, the other one having ended."""
    limits = plan.settings
    terms = Terms(load.name, bandwidth, limits.downtime_s, limits.patience_s)
    destination = Machine(work, number, plan.kernel, load, arriving=True)
    other = destination
    try:
        moved = move(machine, destination, terms)
        append(plan.out, [moved.real, *moved.samples])
        if moved.real.converged:
            machine, other = destination, machine
        say(
            f"{load.name}: {bandwidth / 2**20:.1f} MiB/s: {moved.real.status}, {moved.real.passes} "
            f"passes, {moved.real.total_s:.1f} s"
        )
        if moved.real.guest_wrong:
            raise GuestError(f"{load.name}: {moved.real.guest_wrong} pages of the guest are wrong")
    finally:
        other.close()
    return machine


def recorded(plan: Plan, load: Workload, machine: Machine) -> Load:
    """Record a guest, and ask QEMU for its own estimate after that."""
    settings = plan.settings
    directory = plan.out / RECORDINGS / load.name
    record(machine.pid, directory, settings.interval, settings.rounds)
    own = dirty_rate(machine)
    address, length = ram(machine)
    zero = zero_pages(machine.pid, address, length) * PAGE_BYTES
    critical = critical_bandwidth(lambda s: written(directory, s), settings.downtime_s)
    if not critical:
        raise GuestError(f"{load.name}: the recording has no writes")
    formula = load.distinct and critical_bandwidth(load.distinct, settings.downtime_s)
    return Load(load.name, length, zero, critical, formula, own)


def predict_again(out: Path) -> None:
    """Make all predictions anew, from the recordings in an output folder.

    Raises: OSError.
    """
    settings = read_settings(out)
    loads = {load.workload: load for load in read(out, Load)}
    for old in read(out, Predicted):
        recording = out / RECORDINGS / old.workload
        append(out, [predict(loads[old.workload], recording, old.bandwidth, settings)])
