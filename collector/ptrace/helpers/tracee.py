"""A thread of a target, stopped by ptrace(2): its registers, its signal mask, its interrupted call.

Used by the injector and the freezer, which run with the bare library, as this module does.
Sources: ptrace(2), rseq(2); kernel/ptrace.c, kernel/rseq.c.
"""

import _thread
import ctypes
import errno
import os
import signal
import struct
import time
from collections.abc import Callable

from . import arch as architectures
from . import procfs
from .errors import TraceeError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

SEIZE, INTERRUPT, DETACH, CONT, SYSCALL = 0x4206, 0x4207, 17, 7, 24
PEEKUSER, POKEUSER, SETOPTIONS, GETEVENTMSG, GETSIGINFO = 3, 6, 0x4200, 0x4201, 0x4202
GETREGSET, SETREGSET, GETSIGMASK, SETSIGMASK = 0x4204, 0x4205, 0x420A, 0x420B
O_SYSGOOD, O_TRACEVFORK, O_TRACECLONE = 0x1, 0x4, 0x8
O_TRACEEXEC, O_SUSPEND_SECCOMP = 0x10, 1 << 21
GET_RSEQ, GET_DISPATCH = 0x420F, 0x4211
NT_PRSTATUS = 1
EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 2, 3, 4, 128
_WALL, _STOPPED = 0x40000000, 0x7F
_LOOK = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL
STOP_TIMEOUT_S = 2.0
# For a step that must be waited for: one on a busy machine takes its time, and while others move processes between
# cgroups no thread can be started.
_OVERDUE_S = 15.0
SYSCALL_STOP = signal.SIGTRAP | 0x80
_FEW_STOPS = 3
_WATCH_S, _WATCH_IDLE = 0.05, 100
_REAP_EVERY = 32  # pauses, some 50 ms
_YIELD_S, _SLOW_POLL_S = 0.0002, 0.02

# A call that the thread intercepts ends in SIGSYS: blocked, that would kill the process.
BLOCKED = struct.pack("<Q", ~(1 << (signal.SIGSYS - 1)) & (1 << 64) - 1)
"""The signal mask of a thread that is borrowed. A handler would not find its way back: it would run on the stack
below the frames that lead home, and over those that end a thread."""
BLOCKED_ALL = b"\xff" * 8
"""The mask of a thread that may run no handler at all: one whose memory is away."""

ERESTARTNOHAND = 514


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    """Call ptrace(2). Raises: OSError."""
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, tid, address, data)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def poll_stop(tid: int) -> int:
    """Return the status of a thread that has stopped or ended, as waitpid(2) reports it; 0: neither.

    A stop is only looked at, and stays reported until the thread is resumed: a signal of which the kernel has
    told a tracer is lost when that dies before it resumes the thread with it.

    Raises:
        TraceeError: The thread is gone, as another one executed a program (ESRCH).
    """
    try:
        found = os.waitid(os.P_PID, tid, _LOOK)
        if found is None:
            return 0
        if found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
            return os.waitpid(tid, os.WNOHANG | _WALL)[1]
    except ChildProcessError:
        raise TraceeError(errno.ESRCH, "the process ended") from None
    return found.si_status << 8 | _STOPPED


def reap_ended() -> None:
    """Reap the threads traced by this process that have ended.

    One that executes a program kills all others, and waits until their tracers have done so.
    """
    threads = set(_traced)
    for tid in _traced.copy():
        try:
            threads.update(procfs.threads_of(tid))  # with one whose start was not reported yet
        except OSError:
            continue
        break
    for tid in threads:
        try:
            poll_stop(tid)
        except TraceeError:
            pass  # reaped already, or not traced by this process


class _SeizeWatch:
    """Reaps ended threads while this process is held up in seizing another one.

    The kernel lets nobody seize a thread of a process that is about to execute a program, which in turn waits for
    this process to reap its threads: without another thread that does so, both would wait for ever.

    Attributes:
        number: Seizes so far.
        seizing: Whether one is under way.
        running: Whether the thread runs; it ends after a while without a seize.
    """

    def __init__(self) -> None:
        self.number = 0
        self.seizing = False
        self.running = False

    def __enter__(self) -> None:
        self.number += 1
        self.seizing = True
        if not self.running:
            self.running = True
            _thread.start_new_thread(self.run, ())

    def __exit__(self, *_: object) -> None:
        self.seizing = False

    def run(self) -> None:
        """Look again and again whether it is still the same seize."""
        number, idle = self.number, 0
        while idle < _WATCH_IDLE:
            time.sleep(_WATCH_S)
            if self.number != number:
                number, idle = self.number, 0
            elif self.seizing:
                reap_ended()
            else:
                idle += 1
            if idle == _WATCH_IDLE:
                self.running = False
                if (
                    self.number != number
                ):  # one has begun just now, and saw that this thread was running
                    self.running, idle = True, 0


_traced: set[int] = set()
_watch = _SeizeWatch()


class Tracee:
    """A seized thread.

    Attributes:
        tid: Its thread ID.
        stopped: Whether it is in a ptrace stop.
        postponed: Signals that are sent again at its release.
        overdue: Called once when the thread does not come back within 15 s from a step that
            must be waited for.

    Raises:
        OSError: The thread cannot be seized.
    """

    def __init__(
        self, tid: int, arch: "architectures.Architecture", options: int, *, seize: bool = True
    ) -> None:
        """Seize a thread; seize: False for a new one that the kernel has attached by itself."""
        self.tid = tid
        self.arch = arch
        if seize:
            with _watch:
                ptrace(SEIZE, tid, 0, options)
        _traced.add(tid)
        self.stopped = False
        self.overdue: Callable[[], None] | None = None
        self.postponed: list[int] = []

    def interrupt(self, timeout_s: float | None) -> None:
        """Stop the thread; one deep in the kernel may not stop in time.

        Args:
            timeout_s: How long to wait; None: as long as it takes.

        Raises:
            TraceeError: The thread did not stop (ETIMEDOUT), or it ended (ESRCH).
        """
        ptrace(INTERRUPT, self.tid)
        self.wait_for_stop(timeout_s)

    def wait_for_stop(self, timeout_s: float | None) -> None:
        """Wait for the requested stop. Raises: see interrupt()."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        stops = 0
        while True:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            status = self.wait(left_s)
            if status >> 16 == EVENT_STOP:
                return
            # A signal came first: it is delivered, the interruption comes after it.
            self.resume(CONT, 0 if status >> 16 else os.WSTOPSIG(status))
            stops += 1
            if stops > _FEW_STOPS:
                # Maybe it never comes: by an exec another traced thread has become this one.
                ptrace(INTERRUPT, self.tid)
            if left_s == 0:
                raise TraceeError(errno.ETIMEDOUT, "the thread does not stop (many signals)")

    def hold_back(self, status: int) -> int:
        """Keep the signal at which a borrowed thread has stopped, if any, until release().

        SIGSTOP cannot be blocked. It is delivered at once: the thread can be resumed from the stop of its
        process, which holds again when it is detached, and SIGCONT keeps its meaning.

        Returns:
            The signal with which the thread must be resumed; 0: none; -1: it is one that the thread itself
            has caused.
        """
        number = os.WSTOPSIG(status)
        if status >> 16 or number == SYSCALL_STOP:
            return 0
        if number == signal.SIGSTOP:
            return number
        information = ctypes.create_string_buffer(128)
        ptrace(GETSIGINFO, self.tid, 0, ctypes.addressof(information))
        (code,) = struct.unpack_from("<i", information, 8)
        if code > 0:
            return -1
        self.postponed.append(number)
        return 0

    def run_into_stop(self) -> None:
        """Resume a borrowed thread, whose stop was requested, until that. Raises: see interrupt(), OSError."""
        status = number = 0
        while status >> 16 != EVENT_STOP:
            self.resume(CONT, max(number, 0))
            status = self.wait(None)
            number = self.hold_back(status)

    def resume(self, request: int, number: int = 0) -> None:
        """Resume the thread until its next stop, with a signal to deliver. Raises: OSError."""
        ptrace(request, self.tid, 0, number)
        self.stopped = False

    def wait(self, timeout_s: float | None) -> int:
        """Wait for the thread's next stop; return the wait status. Raises: see interrupt()."""
        limit_s = _OVERDUE_S if timeout_s is None else timeout_s
        started = time.monotonic()
        deadline = started + limit_s
        pause, pauses = 0.00002, 0
        while True:
            if status := poll_stop(self.tid):
                break
            now = time.monotonic()
            if now - started < _YIELD_S:
                os.sched_yield()  # a step takes some 20 us, a sleep would take three times that
                continue
            if now > deadline:
                if timeout_s is not None:
                    raise TraceeError(
                        errno.ETIMEDOUT, "the thread does not stop (waiting in the kernel)"
                    )
                if self.overdue is not None:
                    self.overdue()
                    self.overdue = None
            pauses += 1
            if pauses % _REAP_EVERY == 0:
                reap_ended()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.002 if now < deadline else _SLOW_POLL_S)
        if not os.WIFSTOPPED(status):
            raise TraceeError(errno.ESRCH, "the process ended")
        self.stopped = True
        return status

    def registers(self) -> "ctypes.Array[ctypes.c_uint64]":
        """Read the thread's general registers as words (see Architecture)."""
        words: ctypes.Array[ctypes.c_uint64] = (ctypes.c_uint64 * self.arch.registers)()
        vector = struct.pack("PN", ctypes.addressof(words), ctypes.sizeof(words))
        buffer = ctypes.create_string_buffer(vector, len(vector))
        ptrace(GETREGSET, self.tid, NT_PRSTATUS, ctypes.addressof(buffer))
        return words

    def set_registers(self, words: "ctypes.Array[ctypes.c_uint64]") -> None:
        """Write the thread's general registers."""
        vector = struct.pack("PN", ctypes.addressof(words), ctypes.sizeof(words))
        buffer = ctypes.create_string_buffer(vector, len(vector))
        ptrace(SETREGSET, self.tid, NT_PRSTATUS, ctypes.addressof(buffer))

    def block_signals(self, blocked: bytes = BLOCKED) -> None:
        """Block the thread's signals; blocked: the mask."""
        self.set_mask(ctypes.create_string_buffer(blocked, 8))

    def mask(self) -> bytes:
        """Read the thread's mask of blocked signals, 8 bytes."""
        mask = ctypes.create_string_buffer(8)
        ptrace(GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.raw

    def set_mask(self, mask: "ctypes.Array[ctypes.c_char]") -> None:
        """Write the thread's mask of blocked signals."""
        ptrace(SETSIGMASK, self.tid, 8, ctypes.addressof(mask))

    def begin_call_again(self) -> None:
        """Let a system call that this stop made fail with EINTR begin again when the thread resumes.

        The kernel restarts most calls by itself, but leaves epoll_wait and some others with EINTR, for
        which many programs are not prepared. ERESTARTNOHAND keeps EINTR for a signal that has a handler.
        A call with a time limit gets its full time again. Raises: OSError.
        """
        result, number = self.arch.result * 8, self.arch.interrupted * 8
        if ptrace(PEEKUSER, self.tid, result) != -errno.EINTR:
            return
        if ptrace(PEEKUSER, self.tid, number) in self.arch.begin_again:
            ptrace(POKEUSER, self.tid, result, -ERESTARTNOHAND & (1 << 64) - 1)

    def release(self) -> bool:
        """Detach from the thread, so that it resumes.

        Returns:
            False if that failed, as it ended or is not stopped: only the end of this process releases it
            then. Until that, the thread's process cannot be reaped by its parent.
        """
        try:
            ptrace(DETACH, self.tid, 0, 0)
            for number in self.postponed:
                os.kill(self.tid, number)
        except OSError:
            try:
                poll_stop(self.tid)  # if it has ended, that releases it, too
            except TraceeError:
                pass
            return False
        _traced.discard(self.tid)
        return True


def rseq_area(thread: Tracee) -> int:
    """Return the address of a thread's area for restartable sequences.

    0: the thread has none. -1: the kernel (before 5.13, or built without) does not report it.
    """
    buffer = ctypes.create_string_buffer(24)
    try:
        ptrace(GET_RSEQ, thread.tid, 24, ctypes.addressof(buffer))
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        return -1
    return int(struct.unpack_from("<Q", buffer)[0])


def catches_calls(thread: Tracee) -> bool:
    """Return whether the thread intercepts its own system calls.

    With syscall user dispatch, which Wine uses, no call can be run in the thread. Kernels before 6.4 do
    not report it.
    """
    buffer = ctypes.create_string_buffer(32)
    try:
        ptrace(GET_DISPATCH, thread.tid, 32, ctypes.addressof(buffer))
    except OSError:
        return False
    return bool(struct.unpack_from("<Q", buffer)[0])


def leave_critical_section(
    thread: Tracee, words: "ctypes.Array[ctypes.c_uint64]", memory: int = -1
) -> None:
    """Make a thread that is stopped inside a restartable sequence resume at its abort handler.

    The kernel would do so on return to user space, but not with a borrowed program counter. The registers
    are written before the sequence is declared left: this process may die in between.

    Args:
        thread: The stopped thread.
        words: Its registers, whose program counter is changed.
        memory: Descriptor of its /proc/PID/mem, if one is open.
    """
    area = rseq_area(thread)
    if area <= 0:
        return
    opened = os.open(f"/proc/{thread.tid}/mem", os.O_RDWR) if memory < 0 else memory
    try:
        try:
            (section,) = struct.unpack("<Q", os.pread(opened, 8, area + 8))
        except OSError:
            return  # at an exec: the area was the old program's
        if not section:
            return
        try:
            start, length, abort = struct.unpack("<QQQ", os.pread(opened, 24, section + 8))
        except OSError:
            start, length, abort = 0, 0, 0  # in a library that was unmapped
        if 0 <= words[thread.arch.counter] - start < length:
            words[thread.arch.counter] = abort
            thread.set_registers(words)
        # Also if the sequence was left already: the kernel clears the pointer only later, and first reads what
        # it points to, which may be memory that is away then.
        os.pwrite(opened, bytes(8), area + 8)
    finally:
        if memory < 0:
            os.close(opened)


def outlive_others() -> None:
    """Ignore all signals that can be ignored, and become the OOM killer's last choice.

    This process must not die while it holds a target.
    """
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as f:
            f.write("-1000")
    except OSError:
        pass
