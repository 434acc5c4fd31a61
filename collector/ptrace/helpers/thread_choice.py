"""Choice of the thread that is stopped, and of the moment: one that does not notice. Bare library only.

The kernel restarts most system calls that a stop interrupts, and begin_call_again() some others. What
is left: a call that has done a part of its work returns that part, for which few programs are prepared
in recv with MSG_WAITALL. Such a thread is taken last, and after waiting a while for a better moment.
"""

import errno
import os
import time

from . import procfs
from .arch import Architecture
from .errors import TraceeError

PATIENCE_S = 0.3
_POLL_S = 0.005
_MAX_THREADS = 64  # that are looked at
_ENOUGH = 4  # that are, if one of them notices nothing
_MSG_WAITALL = 0x100
_PARTIAL = 4


def cost(pid: int, tid: int, arch: Architecture) -> int:
    """Return how much a thread would notice of being stopped and borrowed; 0: nothing. Raises: OSError."""
    directory = f"/proc/{pid}/task/{tid}"
    found = 0 if tid == pid else 1  # the first thread's stack is known to be one
    if procfs.status_field(tid, "Seccomp") not in ("", "0"):
        found += 2
    try:
        fields = procfs.read(f"{directory}/syscall").split()
    except OSError:
        return found  # the kernel does not report it
    if len(fields) < 7:
        return found  # it runs, or waits outside a system call
    number, arguments = int(fields[0]), [int(word, 16) for word in fields[1:7]]
    if number in arch.begin_again:
        found += 1  # a time limit begins anew
    if number in arch.receiving and arguments[arch.receiving[number]] & _MSG_WAITALL:
        found += _PARTIAL
    if number in arch.sending:
        found += _PARTIAL
    if procfs.state(tid) == b"D":
        found += 2 * _PARTIAL  # as after vfork: it does not stop
    return found


def candidates(pid: int, arch: Architecture) -> "list[int]":
    """Return the threads of a process that may be borrowed, the best first.

    Raises:
        TraceeError: All have ended (ESRCH).
        OSError: The process is gone.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        threads = procfs.living_threads(pid)
        if not threads:
            raise TraceeError(errno.ESRCH, "the process ended")
        costs = []
        for tid in sorted(threads[:_MAX_THREADS], key=lambda tid: (tid != pid, tid)):
            try:
                costs.append((cost(pid, tid, arch), tid))
            except OSError:
                continue  # it ended
            if len(costs) >= _ENOUGH and min(costs)[0] == 0:
                break
        costs.sort(key=lambda one: one[0])
        if costs and (costs[0][0] < _PARTIAL or time.monotonic() > deadline):
            return [tid for _, tid in costs]
        if not os.path.exists(f"/proc/{pid}"):
            raise TraceeError(errno.ESRCH, "the process ended")
        time.sleep(_POLL_S)
