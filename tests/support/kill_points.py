"""Points in the life of redirty at which a test kills it: in its start, while it holds the target, in its
rounds. REDIRTY_SEED repeats the random ones of a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.redirty_cli import ProgramError, finish, start_redirty
from tests.support.target_state import tracer_of
from tests.support.waiting import wait_until
from tests.workloads.driver import Checksum

SEED = int(os.environ.get("REDIRTY_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
INTERVAL = "20ms"


def wait_seized(pid: int, process: subprocess.Popen[str], directory: Path) -> int:
    """Spin, without ever sleeping, until the target is seized; return the PID of its tracer.

    Return 0 when that was over before it was observed: on a busy machine this process may not run in that
    millisecond.
    """
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        while not (tracer := tracer_of(pid)):
            if directory.exists():  # made when the target is armed
                return 0
            if process.poll() is not None:
                raise ProgramError(f"redirty ended: {finish(process)}")
        return tracer
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def wait_rounds(directory: Path, process: subprocess.Popen[str]) -> None:
    """Wait for the first complete round."""
    rounds = directory / "rounds.csv"

    def some() -> bool:
        if process.poll() is not None:
            raise ProgramError(f"redirty ended: {finish(process)}")
        return rounds.exists() and rounds.read_bytes().count(b"\n") > 1

    wait_until(some, "a first round")


def spin(seconds: float) -> None:
    """Wait exactly: a sleep would be too long for a window of a millisecond."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def start_s(target: Checksum, directory: Path) -> float:
    """Measure the time from redirty's first instruction to its first round: the better of two runs, as the
    first of all also compiles Python's modules.
    """
    times = []
    for attempt in range(2):
        started = time.monotonic()
        rounds = directory.with_name(f"{directory.name}{attempt}")
        process = start_redirty("record", "-p", target.pid, INTERVAL, "-o", rounds)
        try:
            wait_rounds(rounds, process)
            times.append(time.monotonic() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            finish(process)
    return min(times)


Moment = Callable[[random.Random, Checksum, Path, "subprocess.Popen[str]", float], None]


def in_start_up(
    rng: random.Random, _t: Checksum, _d: Path, _p: subprocess.Popen[str], start: float
) -> None:
    """Sleep until any moment from the first instruction to a little after the first round."""
    time.sleep(rng.uniform(0, 1.2 * start))


def in_window(
    rng: random.Random, target: Checksum, directory: Path, process: subprocess.Popen[str], _s: float
) -> None:
    """Wait until the injector holds the target, or has just released it."""
    wait_seized(target.pid, process, directory)
    spin(rng.uniform(0, 0.002))


def in_rounds(
    rng: random.Random, _t: Checksum, directory: Path, process: subprocess.Popen[str], _s: float
) -> None:
    """Wait until rounds run: arming, scanning, writing to disk."""
    wait_rounds(directory, process)
    time.sleep(rng.uniform(0, 0.2))


MOMENTS: tuple[Moment, ...] = (in_start_up, in_window, in_rounds)
