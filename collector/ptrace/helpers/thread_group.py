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
    """All threads of a process, or all but one, stopped until release().

    Attributes:
        pid: The process.
        threads: Its threads, in the order in which they were stopped.
        started: When the first was requested to stop (time.monotonic()).

    Raises:
        TraceeError: A thread cannot be stopped, or not in time; all are released then.
    """

    def __init__(
        self,
        pid: int,
        arch: Architecture,
        timeout_s: float,
        *,
        runs_calls: bool = False,
        besides: int = 0,
    ) -> None:
        """Stop the threads.

        Args:
            pid: The process.
            arch: Its architecture.
            timeout_s: How long to wait.
            runs_calls: Whether they will run system calls, which their seccomp filters must not see.
            besides: A thread that is stopped already; 0: none.
        """
        self.pid = pid
        self.threads: list[Tracee] = []
        deadline = time.monotonic() + timeout_s
        self.started = 0.0
        known = {besides}
        try:
            # Until no thread is new: one that is not stopped yet may start others.
            while new := [tid for tid in procfs.living_threads(pid) if tid not in known]:
                known.update(new)
                fresh = [t for tid in new if (t := self._seize(tid, arch, runs_calls))]
                self.started = self.started or time.monotonic()
                for thread in fresh:
                    tracee.ptrace(tracee.INTERRUPT, thread.tid)
                for thread in fresh:
                    self._wait(thread, deadline)
        except BaseException:
            self.release()
            raise
        if not self.threads and not besides:
            raise TraceeError(errno.ESRCH, "the process ended")

    def _seize(self, tid: int, arch: Architecture, runs_calls: bool) -> "Tracee | None":
        try:
            filtered = runs_calls and procfs.status_field(tid, "Seccomp") not in ("", "0")
            return Tracee(tid, arch, tracee.O_SUSPEND_SECCOMP if filtered else 0)
        except OSError as e:
            if e.errno in (errno.ESRCH, errno.ENOENT):
                return None
            raise TraceeError(
                errno.EPERM,
                f"its thread {tid} ({procfs.comm(tid)}) cannot be stopped by ptrace, and may use its memory",
            ) from None

    def _wait(self, thread: Tracee, deadline: float) -> None:
        self.threads.append(thread)
        try:
            thread.wait_for_stop(max(0.0, deadline - time.monotonic()))
            thread.begin_call_again()
        except TraceeError as e:
            if e.code != errno.ESRCH:
                raise
            self.threads.remove(thread)  # it ended

    def release(self) -> None:
        """Resume all threads. One that is not stopped is released by the end of this process."""
        for thread in self.threads:
            thread.release()
