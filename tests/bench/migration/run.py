"""Migration runs: each workload in a guest that is recorded once and then migrates again and again."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from redirty.collector import VERSION

from tests.bench.migration.guests import GuestError, Machine
from tests.bench.migration.memory import ram, zero_pages
from tests.bench.migration.move import POSTCOPY, QEMU, Moved, Terms, dirty_rate, move
from tests.bench.migration.predict import predict, record, written
from tests.bench.migration.qmp import QmpError
from tests.bench.migration.results import (
    Load,
    Predicted,
    Real,
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
_EASY = (8.0, 1.6, 8.0, 1.6, 8.0, 1.6)  # times the critical bandwidth: every migration ends soon
_EASY_POSTCOPY = (1.6, 1.6, 1.6)  # a post-copy's stop takes longer when the link is faster
_FAR = 0.5  # of the largest difference of two stops: what is nearer tells nothing of a slope
# Failures of a guest, or of what asks it.
TROUBLE = (GuestError, QmpError, ProgramError, OSError)


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        factors: bandwidths of plain migrations, as multiples of each guest's critical one.
        others: the same for migrations with each of the policies.
        policies: other ones than QEMU's plain pre-copy.
    """

    out: Path
    settings: Settings
    kernel: Kernel
    factors: Sequence[float]
    others: Sequence[float] = ()
    policies: Sequence[str] = ()


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
    """Measure one workload: boot, record, see what a stop takes, predict all, migrate at each bandwidth.

    Raises: TROUBLE.
    """
    with scratch("migration") as work:
        guests = _Guests(plan, load, work)
        try:
            guests.here.wait_lines(_SETTLED_LINES)
            found = guests.with_stops(recorded(plan, load, guests.here))
            append(plan.out, [found])
            say(f"{load.name}: critical at {found.critical_bytes_per_s / 2**20:.1f} MiB/s")
            recording = plan.out / RECORDINGS / load.name
            # The fastest first: a guest that does not survive a migration shows early.
            jobs = [
                (policy, round(found.critical_bytes_per_s * factor))
                for policy in (QEMU, *plan.policies)
                for factor in sorted(plan.factors if policy == QEMU else plan.others, reverse=True)
            ]
            for policy, bandwidth in jobs:
                append(plan.out, [predict(found, recording, bandwidth, plan.settings, policy)])
            for policy, bandwidth in jobs:
                moved = guests.move(policy, bandwidth)
                append(plan.out, [moved.real, *moved.samples])
        finally:
            guests.here.close()


class _Guests:
    """Moves a guest from machine to machine. here: the machine in which it is."""

    def __init__(self, plan: Plan, load: Workload, work: Path) -> None:
        self._plan, self._load, self._work = plan, load, work
        self._started = 1
        self.here = Machine(work, 0, plan.kernel, load)

    def move(self, policy: str, bandwidth: int) -> Moved:
        """Migrate it; the machine in which it is not afterwards has ended."""
        plan, load = self._plan, self._load
        limits = plan.settings
        terms = Terms(load.name, bandwidth, limits.downtime_s, limits.patience_s, policy)
        other = destination = Machine(self._work, self._started, plan.kernel, load, arriving=True)
        self._started += 1
        try:
            moved = move(self.here, destination, terms)
            real = moved.real
            if real.converged:
                self.here, other = destination, self.here
            say(
                f"{load.name}: {policy} at {bandwidth / 2**20:.1f} MiB/s: {real.status}, {real.passes} passes, "
                f"{real.total_s:.1f} s"
            )
            if real.guest_wrong:
                raise GuestError(f"{load.name}: {real.guest_wrong} pages of the guest are wrong")
        finally:
            other.close()
        return moved

    def with_stops(self, load: Load) -> Load:
        """Return the workload with what its stops take: those of plain migrations, and of post-copies."""

        def moved(policy: str, factors: Sequence[float]) -> list[Real]:
            rates = [round(load.critical_bytes_per_s * factor) for factor in factors]
            return [self.move(policy, rate).real for rate in rates]

        reals = moved(QEMU, _EASY)
        last = self._plan.settings.last_bandwidth
        plain_s, last = stop_line(
            [real.downtime_bytes for real in reals],
            [real.downtime_s or 0.0 for real in reals],
            last,
        )
        postcopy_s = None
        if POSTCOPY in self._plan.policies:
            reals = moved(POSTCOPY, _EASY_POSTCOPY)
            postcopy_s = float(np.median([real.downtime_s or 0.0 for real in reals]))
        return replace(load, qemu_stop_s=plain_s, postcopy_stop_s=postcopy_s, last_bytes_per_s=last)


def stop_line(
    sent: Sequence[float], took_s: Sequence[float], bandwidth: float
) -> tuple[float, float]:
    """Return what stops take in addition to sending, and the bytes per second at which they send.

    By the medians of slopes and of what is left (Theil and Sen), so that some slow stops change nothing.

    Args:
        sent: bytes sent in each stop.
        took_s: how long each took.
        bandwidth: what is returned if the stops do not tell.
    """
    pairs = list(itertools.combinations(zip(sent, took_s, strict=True), 2))
    widest = max(abs(b[0] - a[0]) for a, b in pairs)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if abs(b[0] - a[0]) > _FAR * widest]
    slope = float(np.median(slopes)) if slopes else 0.0
    if slope > 0:
        bandwidth = 1 / slope
    left_s = np.array(took_s, np.float64) - np.array(sent, np.float64) / bandwidth
    return max(float(np.median(left_s)), 0.0), bandwidth


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
        load = loads[old.workload]
        append(out, [predict(load, recording, old.bandwidth, settings, old.policy)])
