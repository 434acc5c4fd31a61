"""All threads of a process, stopped by ptrace(2). Run by the injector with the bare library.

The freezer has code of its own for this: it stops several processes as one and keeps serving afterwards,
so it has to wait for a thread that did not stop in time. A step of the injector is a separate process,
whose end releases such a thread. The order (seize all, then interrupt all) keeps the measured stop short.
"""

import errno
import time

from . import procfs, tracee
from .arch import Architecture
from .errors import TraceeError
from .tracee import Tracee


class StoppedThreads:
    """All threads of a process, stopped until release().

    Attributes:
        pid: The process.
        threads: Its threads, in the order in which they were stopped.
        started: When the first was requested to stop (time.monotonic()).

    Raises:
        TraceeError: A thread cannot be stopped, or not in time; all are released then.
    """

    def __init__(self, pid: int, arch: Architecture, options: int, timeout_s: float) -> None:
        self.pid = pid
        self.threads: list[Tracee] = []
        deadline = time.monotonic() + timeout_s
        self.started = 0.0
        known: set[int] = set()
        try:
            # Until no thread is new: one that is not stopped yet may start others.
            while new := [tid for tid in procfs.living_threads(pid) if tid not in known]:
                known.update(new)
                fresh = [t for tid in new if (t := self._seize(tid, arch, options))]
                self.started = self.started or time.monotonic()
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
            raise TraceeError(
                errno.EPERM,
                f"its thread {tid} ({procfs.comm(tid)}) cannot be stopped by ptrace, and may use its memory",
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
        """Resume all threads. One that is not stopped is released by the end of this process."""
        for thread in self.threads:
            thread.release()
