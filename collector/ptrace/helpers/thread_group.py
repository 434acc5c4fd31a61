"""All threads of a process, stopped by ptrace(2). Run by the injector, with Python's bare library."""

import errno
import os
import time

from . import tracee
from .arch import Architecture
from .tracee import Tracee, TraceeError


def _state(tid: int) -> str:
    with open(f"/proc/{tid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def living_threads(pid: int) -> "list[int]":
    """Threads that have not ended."""
    found = []
    for tid in sorted(int(t) for t in os.listdir(f"/proc/{pid}/task")):
        try:
            if _state(tid) not in "ZX":
                found.append(tid)
        except OSError:
            continue
    return found


class StoppedThreads:
    """All threads of a process, stopped. release() lets them run as they are. begun: when the first
    was told to stop."""

    def __init__(self, pid: int, arch: Architecture, options: int, timeout_s: float) -> None:
        self.pid = pid
        self.threads: list[Tracee] = []
        deadline = time.monotonic() + timeout_s
        self.begun = 0.0
        known: set[int] = set()
        try:
            # Until no thread is new: one that is not stopped yet may start others.
            while new := [tid for tid in living_threads(pid) if tid not in known]:
                known.update(new)
                fresh = [t for tid in new if (t := self._seize(tid, arch, options))]
                self.begun = self.begun or time.monotonic()
                for thread in fresh:
                    tracee.ptrace(tracee.INTERRUPT, thread.tid)
                for thread in fresh:
                    self._wait(thread, deadline)
        except BaseException:
            self.release()
            raise
        if not self.threads:
            raise TraceeError(errno.ESRCH, "the process ended")

    def _seize(self, tid: int, arch: Architecture, options: int) -> "Tracee | None":
        try:
            return Tracee(tid, arch, options)
        except OSError as e:
            if e.errno == errno.ESRCH:
                return None
            with open(f"/proc/{tid}/comm", encoding="utf-8", errors="replace") as comm:
                name = comm.read().strip()
            raise TraceeError(
                errno.EPERM,
                f"its thread {tid} ({name}) can't be stopped by ptrace, and may use its memory",
            ) from None

    def _wait(self, thread: Tracee, deadline: float) -> None:
        self.threads.append(thread)
        try:
            thread.wait_for_stop(max(0.0, deadline - time.monotonic()))
        except TraceeError as e:
            if e.code != errno.ESRCH:
                raise
            self.threads.remove(thread)  # it ended

    def release(self) -> None:
        """Lets all run on. A thread that is not stopped is freed by this process's end."""
        for thread in self.threads:
            thread.release()
