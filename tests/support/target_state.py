"""What a target looks like from outside: what no collector may change, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.waiting import wait_until

_SEIZE = 0x4206  # ptrace


class _Running(Protocol):
    pid: int

    @property
    def alive(self) -> bool: ...


def task_fields(pid: int, *names: str) -> dict[int, tuple[str, ...]]:
    """Fields of /proc/PID/task/TID/status by thread."""
    found = {}
    for tid in sorted(int(entry.name) for entry in os.scandir(f"/proc/{pid}/task")):
        text = Path(f"/proc/{pid}/task/{tid}/status").read_text(errors="replace")
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        found[tid] = tuple(fields[name].strip() for name in names)
    return found


def tracer_of(pid: int) -> int:
    """The process that has its first thread seized, 0 for none."""
    for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
        if line.startswith(b"TracerPid:"):
            return int(line.split()[1])
    return 0


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of the process is."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = str(Path(entry.path).readlink())
    return found


def child_of(wrapper: int) -> int:
    """Return the PID, in this namespace, of the only child of a wrapper's process."""
    return int(Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text())


@dataclass(frozen=True)
class Condition:
    """A target's state that no collector may change."""

    descriptors: dict[int, str]
    signal_mask: str  # of the first thread, which is the one that is used

    @classmethod
    def of(cls, pid: int) -> Condition:
        """As it is now."""
        return cls(descriptors(pid), task_fields(pid, "SigBlk")[pid][0])


def assert_released(target: _Running, before: Condition) -> None:
    """Nobody traces it, nothing stands still, nothing was left in it."""
    assert target.alive
    states = task_fields(target.pid, "TracerPid", "State")
    assert {tracer for tracer, _ in states.values()} == {"0"}, states
    assert not [state for _, state in states.values() if state[0] in "tTZX"], states
    after = Condition.of(target.pid)
    # In words: this module is no test, so a bare assertion would not say what differs.
    assert after == before, f"before {before}, after {after}"


@contextlib.contextmanager
def debugged(pid: int) -> Iterator[None]:
    """Another process traces it, as a debugger does (gdb takes a minute to start here)."""
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).ptrace(_SEIZE, pid, None, None)
        signal.pause()
        os._exit(1)
    try:
        wait_until(lambda: tracer_of(pid) == child, "traced", timeout_s=60)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
