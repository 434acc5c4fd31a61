"""Waiting for conditions that another process brings about."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

# For anything to happen at all: only what hangs takes longer, on whatever machine and beside whatever load.
# A test as a whole is ended by the one limit in pyproject.toml, so no test needs a limit of its own.
PATIENCE_S = 900
_POLL_S = 0.005
_IDLE_POLL_S = 0.001


def wait_until(
    condition: Callable[[], object], what: str, *, timeout_s: float = PATIENCE_S
) -> None:
    """Poll a condition until it holds.

    Raises: AssertionError, which names `what`, when it does not hold within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(_POLL_S)


def wait_idle(pid: int, timeout_s: float = PATIENCE_S) -> None:
    """Wait until every thread of a process sleeps.

    A thread that has just answered still runs for a moment, and what it writes then may belong
    to either of two rounds.

    Raises: AssertionError, which names the states, when a thread still runs after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        states = set()
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                states.add(stat.read_text().rpartition(")")[2].split()[0])
        if states <= {"S", "T", "Z"}:
            return
        time.sleep(_IDLE_POLL_S)
    raise AssertionError(f"process {pid} does not become idle: {states}")
