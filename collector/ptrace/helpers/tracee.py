"""A thread of a target, stopped by ptrace(2): its registers and signal mask, a system call in it.

Used by the injector and the freezer, which run with the bare library, as this module does.
Sources: ptrace(2), rseq(2); kernel/ptrace.c, kernel/rseq.c.
"""

import ctypes
import errno
import os
import signal
import struct
import time

from . import arch as architectures
from .errors import TraceeError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

SEIZE, INTERRUPT, DETACH, CONT, SINGLESTEP = 0x4206, 0x4207, 17, 7, 9
GETREGSET, SETREGSET, GETSIGMASK, SETSIGMASK = 0x4204, 0x4205, 0x420A, 0x420B
O_TRACEEXEC, O_SUSPEND_SECCOMP = 0x10, 1 << 21
GET_RSEQ, GET_DISPATCH = 0x420F, 0x4211
NT_PRSTATUS = 1
EVENT_EXEC, EVENT_STOP = 4, 128
WALL = 0x40000000
STOP_TIMEOUT_S = 2.0


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    """Call ptrace(2). Raises: OSError."""
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, tid, address, data)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Tracee:
    """A seized thread.

    Attributes:
        tid: Its thread ID.
        stopped: Whether it is in a ptrace stop.
        deliver: A signal that arrived meanwhile, delivered at its release; 0: none.

    Raises:
        OSError: The thread cannot be seized.
    """

    def __init__(self, tid: int, arch: "architectures.Architecture", options: int) -> None:
        self.tid = tid
        self.arch = arch
        ptrace(SEIZE, tid, 0, options)
        self.stopped = False
        self.deliver = 0

    def interrupt(self, timeout_s: float) -> None:
        """Stop the thread, waiting up to timeout_s: one deep in the kernel may not stop in time.

        Raises:
            TraceeError: The thread did not stop (ETIMEDOUT), or it ended (ESRCH).
        """
        ptrace(INTERRUPT, self.tid)
        self.wait_for_stop(timeout_s)

    def wait_for_stop(self, timeout_s: float) -> None:
        """Wait for the requested stop. Raises: see interrupt()."""
        while True:
            status = self.wait(timeout_s)
            if status >> 16 == EVENT_STOP:
                return
            # A signal came first: it is delivered, the interruption comes after it.
            ptrace(CONT, self.tid, 0, 0 if status >> 16 else os.WSTOPSIG(status))
            self.stopped = False

    def wait(self, timeout_s: float) -> int:
        """Wait for the thread's next stop; return the wait status. Raises: see interrupt()."""
        deadline = time.monotonic() + timeout_s
        pause = 0.00002
        while True:
            got, status = os.waitpid(self.tid, os.WNOHANG | WALL)
            if got == self.tid:
                break
            if time.monotonic() > deadline:
                raise TraceeError(
                    errno.ETIMEDOUT, "the thread does not stop (waiting in the kernel)"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.002)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
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

    def block_signals(self) -> "ctypes.Array[ctypes.c_char]":
        """Block the thread's signals; return the mask it had.

        A handler must not run on registers that are not the program's. SIGTRAP stays open: it
        reports a step, and the kernel would reset its handler if it had to force it through.
        """
        old = ctypes.create_string_buffer(self.mask(), 8)
        self.set_mask(ctypes.create_string_buffer(b"\xef" + b"\xff" * 7, 8))
        return old

    def mask(self) -> bytes:
        """Read the thread's mask of blocked signals, 8 bytes."""
        mask = ctypes.create_string_buffer(8)
        ptrace(GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.raw

    def set_mask(self, mask: "ctypes.Array[ctypes.c_char]") -> None:
        """Write the thread's mask of blocked signals."""
        ptrace(SETSIGMASK, self.tid, 8, ctypes.addressof(mask))

    def call(
        self, saved: "ctypes.Array[ctypes.c_uint64]", at: int, number: int, *arguments: int
    ) -> int:
        """Run one system call in the thread; return its result, or minus errno.

        Args:
            saved: The thread's registers; they are not restored.
            at: Address of a system call instruction.
            number: Number of the system call.
            arguments: Its arguments.

        Raises:
            TraceeError: The call did not run, or the process ended.
        """
        arch = self.arch
        words = type(saved).from_buffer_copy(saved)
        words[arch.interrupted] = 0xFFFF_FFFF_FFFF_FFFF
        words[arch.number] = number
        words[arch.counter] = at
        for index, value in zip(arch.arguments, arguments, strict=False):
            words[index] = value
        self.set_registers(words)
        for _ in range(16):
            ptrace(SINGLESTEP, self.tid, 0, 0)
            self.stopped = False
            status = self.wait(STOP_TIMEOUT_S)
            now = self.registers()
            if now[arch.counter] == at + len(arch.instruction):
                return ctypes.c_int64(now[arch.result]).value
            if status >> 16 == 0 and os.WSTOPSIG(status) not in (signal.SIGTRAP,):
                self.deliver = os.WSTOPSIG(status)
        raise TraceeError(errno.EIO, "the system call did not run as expected")

    def release(self) -> None:
        """Detach from the thread, so that it resumes; a signal that arrived meanwhile is delivered."""
        try:
            ptrace(DETACH, self.tid, 0, self.deliver)
        except OSError:
            pass  # it ended, or is not stopped: then the end of this process releases it


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

    The kernel would do so on return to user space, but not with a borrowed program counter.

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
