"""Creates a userfaultfd of a process's memory, in one of its threads. Bare library only."""

import errno
import os
import time
from collections.abc import Callable

from . import borrowed, code_search, procfs, thread_choice, tracee
from .arch import architecture
from .borrowed import BorrowedThread
from .code_search import Code
from .errors import TraceeError
from .thread_group import StoppedThreads
from .tracee import Tracee

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1  # USER_MODE_ONLY: allowed to every user's process
_LAST_RESORT_S = 0.5
_CHOICE = 4  # threads, one of which should be on a stack of its own


def require_usable(pid: int) -> None:
    """Check that system calls can be run in a process.

    Raises:
        TraceeError: The process is traced (EBUSY), or frozen (ETIMEDOUT: that may pass).
        OSError: The process is gone.
    """
    tracer = procfs.status_field(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise TraceeError(errno.EBUSY, f"already traced by process {tracer}")
    if group := procfs.frozen_by(pid):
        raise TraceeError(
            errno.ETIMEDOUT, f"it is frozen (paused) by its cgroup {group}; thaw it first"
        )


def seize(pid: int, tid: int, options: int) -> Tracee:
    """Seize a thread of a process, which keeps running.

    Raises:
        TraceeError: It may not be traced.
        OSError: It is gone.
    """
    try:
        return Tracee(tid, architecture(), options)
    except OSError as e:
        if e.errno != errno.EPERM:
            raise
        tracer = procfs.status_field(tid, "TracerPid")
        if tracer not in ("", "0"):
            raise TraceeError(errno.EBUSY, f"already traced by process {tracer}") from None
        if not procfs.lives(tid):
            raise TraceeError(errno.ESRCH, "the process ended") from None
        raise TraceeError(
            errno.EPERM, "the kernel does not allow it to be traced (ptrace)"
        ) from None


def inject(
    pid: int, code: Code, timeout_s: float, overdue: Callable[[], None]
) -> "tuple[int, float]":
    """Create a userfaultfd in a running process.

    Args:
        pid: The process.
        code: Its code, found beforehand.
        timeout_s: How long to wait until a thread has stopped.
        overdue: Called once when the process does not run on after that.

    Returns:
        The descriptor, and for how many seconds a thread was stopped.

    Raises:
        TraceeError: No thread can run the system call, or the kernel refused it.
        OSError: The process is gone.
    """
    deadline = time.monotonic() + timeout_s
    tids = thread_choice.candidates(pid, architecture())
    # At first only one that would find home by itself, then any.
    attempts = [(tid, True) for tid in tids[:_CHOICE]] + [(tid, False) for tid in tids]
    failure = TraceeError(errno.ESRCH, "the process ended")
    for left, (tid, needs_home) in zip(range(len(attempts) - 1, -1, -1), attempts, strict=True):
        started = time.monotonic()
        rest_s = max(deadline - started, 0.0)
        thread = None
        try:
            thread = seize(pid, tid, 0)
            thread.overdue = overdue
            thread.interrupt(rest_s if left == 0 else min(rest_s, _LAST_RESORT_S))
            descriptor = get_userfaultfd(thread, pid, code, needs_home=needs_home)
            return descriptor, time.monotonic() - started
        except OSError as e:
            if e.errno != errno.ESRCH:
                raise
        except TraceeError as e:
            failure = e
            if e.code not in (errno.ESRCH, errno.EPERM, errno.ETIMEDOUT):
                raise
        finally:
            if thread is not None:
                thread.release()
    raise failure


def get_userfaultfd(thread: Tracee, pid: int, code: Code, *, needs_home: bool = False) -> int:
    """Create a userfaultfd in a stopped thread and duplicate it into this process.

    Nothing of it stays in the target.

    Raises:
        NoWayHomeError: See BorrowedThread.
        TraceeError: The target cannot run the system call, or the kernel refused it.
        OSError: The process is gone.
    """
    with open(f"{procfs.directory(pid)}/mem", "r+b", buffering=0) as memory:
        if not code.still_there(memory.fileno(), thread.arch):
            code = code_search.search(pid, thread.arch)
        with BorrowedThread(thread, code, memory.fileno(), needs_home=needs_home) as lent:
            descriptor = in_new_thread(lent)
            return in_shared_table(lent, pid) if descriptor is None else descriptor


def in_new_thread(lent: BorrowedThread) -> "int | None":
    """Create it in a new thread, whose descriptors are no one else's; None if that is not possible.

    Raises: TraceeError, OSError.
    """
    steps = lent.start_thread()
    if steps is None:
        return None
    try:
        number = steps.call(lent.thread.arch.userfaultfd, _FLAGS)
        if number == -errno.EMFILE:  # the target's table is full: this one is a copy
            steps.call(lent.thread.arch.close, 0)
            number = steps.call(lent.thread.arch.userfaultfd, _FLAGS)
        if number < 0:
            raise refused(number)
        return borrowed.duplicate(steps.thread.tid, number, borrowed.PIDFD_THREAD)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOSYS):  # before 6.9 there is no pidfd of a thread
            raise
        return None
    finally:
        lent.end_thread(steps)


def in_shared_table(lent: BorrowedThread, pid: int) -> int:
    """Create it in the process's own table while no other thread runs, which might fork; close it there.

    Raises: TraceeError, OSError.
    """
    others = StoppedThreads(pid, lent.thread.arch, tracee.STOP_TIMEOUT_S, besides=lent.thread.tid)
    try:
        number = lent.call(lent.thread.arch.userfaultfd, _FLAGS)
        if number < 0:
            raise refused(number)
        try:
            return borrowed.duplicate(pid, number, 0)
        except OSError as e:
            code = e.errno or errno.EIO
            raise TraceeError(code, f"pidfd_getfd: {os.strerror(code)}") from None
        finally:
            lent.call(lent.thread.arch.close, number)
    finally:
        others.release()


def refused(result: int) -> TraceeError:
    """Return the error for a refused userfaultfd(2); result: minus errno."""
    return TraceeError(-result, f"userfaultfd in it: {os.strerror(-result)}")
