"""The state of a target seen from outside: what no collector may change, however it ends."""

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
    """Return fields of /proc/PID/task/TID/status by TID, of those that are there.

    Raises: FileNotFoundError when the process is gone.
    """
    found = {}
    for tid in sorted(int(entry.name) for entry in os.scandir(f"/proc/{pid}/task")):
        with contextlib.suppress(
            FileNotFoundError, ProcessLookupError
        ):  # a thread that ended meanwhile
            text = Path(f"/proc/{pid}/task/{tid}/status").read_text(errors="replace")
            fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            found[tid] = tuple(fields[name].strip() for name in names)
    return found


def tracer_of(pid: int) -> int:
    """Return the PID of the process that traces a process's first thread, 0 if there is none."""
    for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
        if line.startswith(b"TracerPid:"):
            return int(line.split()[1])
    return 0


def is_freezer(tracer: int) -> bool:
    """Return whether a tracer is redirty's freezer, which stops a target; the injector arms it."""
    try:
        return b"HELPER=freezer" in Path(f"/proc/{tracer}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def descriptors(pid: int) -> dict[int, str]:
    """Return what each descriptor of a process refers to."""
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
    """State of a target that no collector may change."""

    descriptors: dict[int, str]
    signal_mask: str  # of the first thread, which is the one that is used

    @classmethod
    def of(cls, pid: int) -> Condition:
        """Read the current state."""
        return cls(descriptors(pid), task_fields(pid, "SigBlk")[pid][0])


def assert_released(target: _Running, before: Condition) -> None:
    """Assert that a target is not traced, that no thread is stopped, and that nothing was left in it."""
    assert target.alive
    states = task_fields(target.pid, "TracerPid", "State")
    assert {tracer for tracer, _ in states.values()} == {"0"}, states
    assert not [state for _, state in states.values() if state[0] in "tTZX"], states
    after = Condition.of(target.pid)
    # With a message: this module is not a test, so a bare assertion would not show what differs.
    assert after == before, f"before {before}, after {after}"


@contextlib.contextmanager
def debugged(pid: int) -> Iterator[None]:
    """Trace a process from another one, as a debugger does (gdb takes a minute to start here)."""
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).ptrace(_SEIZE, pid, None, None)
        signal.pause()
        os._exit(1)
    try:
        wait_until(lambda: tracer_of(pid) == child, "traced")
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
