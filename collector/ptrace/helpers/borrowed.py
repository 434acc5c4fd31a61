"""A stopped thread whose registers are borrowed for system calls of ours, and given back as they were.

Whatever happens to this process meanwhile, the thread comes home. In the unused memory below its stack lies
a signal frame with its registers; it only ever runs a system call instruction that is followed by a return, into
rt_sigreturn, which restores all from that frame. At rest, its next call is rt_sigreturn itself; another call
is put in its place only when it stands at the kernel's door. No time limit applies: a thread may be
frozen or throttled for as long as its owner wants, and left half way it would run on borrowed registers.

Where there is no such code or no safe stack, the thread is borrowed all the same, but then the death of this
process in that millisecond kills the target. Bare library only.
"""

import ctypes
import errno
import os
import signal
import struct

from . import procfs, return_frame, tracee
from .arch import Architecture
from .code_search import Code
from .errors import TraceeError
from .tracee import Tracee

NT_X86_XSTATE = 0x202
_RED_ZONE_BYTES = 128
_GAP_BYTES = 512
_SPARE_STACK_BYTES = 4096
_ROOM_BYTES = 16384  # more than any processor's extended registers, both frames and that
_GUARD_BYTES = 1 << 20  # the largest that a guard below a stack is expected to be
_MINUS_ONE = 0xFFFF_FFFF_FFFF_FFFF

# a thread that shares the memory but not the descriptors, while the calling one waits for its end
_CLONE = 0x100 | 0x800 | 0x4000 | 0x10000  # VM, SIGHAND, VFORK, THREAD
_ERESTARTNOINTR = 513
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
PIDFD_THREAD = os.O_EXCL

DISPATCHED = "it intercepts its own system calls (syscall user dispatch), as Wine does"

_libc = ctypes.CDLL(None, use_errno=True)
_layout: "list[tuple[int, int]]" = []


def prepare() -> None:
    """Find out beforehand how signal frames look on this processor."""
    if not _layout:
        _layout.append(return_frame.own_layout())


def extended_state(tid: int) -> bytes:
    """Read the extended registers of a stopped thread; empty if there are none."""
    buffer = ctypes.create_string_buffer(1 << 16)
    vector = struct.pack("PN", ctypes.addressof(buffer), len(buffer))
    wrapped = ctypes.create_string_buffer(vector, len(vector))
    try:
        tracee.ptrace(tracee.GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(wrapped))
    except OSError:
        return b""
    return buffer.raw[: struct.unpack("PN", wrapped.raw)[1]]


def stack_below(code: Code, pointer: int) -> int:
    """Return how many bytes lie unused below a stack pointer; 0 if that is not known to be a stack.

    What is no such mapping may be a stack of a few KiB among other data, as of goroutines.
    """
    guard_end = 0
    for (start, end, perms), rest in code.mappings:
        if start <= pointer < end:
            if perms[:2] != "rw":
                return 0
            known = rest.endswith(b"[stack]") or guard_end == start
            return pointer - start if known else 0
        guard = perms.startswith("---") and end - start <= _GUARD_BYTES
        guard_end = end if guard else 0
    return 0


def is_on_stack(code: Code, words: "ctypes.Array[ctypes.c_uint64]", arch: Architecture) -> bool:
    """Return whether a thread with these registers is on a stack with room for all that is written there."""
    back = code.is_part_of(words[arch.counter], arch)
    return not back and stack_below(code, words[arch.stack]) > _ROOM_BYTES


def set_options(thread: Tracee) -> None:
    """Set the ptrace options for running calls in a stopped thread.

    Raises:
        TraceeError: It has a seccomp filter, which may kill for calls, and that cannot be suspended.
        OSError: It has ended.
    """
    options = tracee.O_SYSGOOD | tracee.O_TRACEVFORK | tracee.O_TRACECLONE
    if procfs.status_field(thread.tid, "Seccomp") not in ("", "0"):
        options |= tracee.O_SUSPEND_SECCOMP
    try:
        tracee.ptrace(tracee.SETOPTIONS, thread.tid, 0, options)
    except OSError as e:
        if e.errno in (errno.EPERM, errno.EINVAL) and options & tracee.O_SUSPEND_SECCOMP:
            why = f"its seccomp filter cannot be suspended: {os.strerror(e.errno)}"
            raise TraceeError(errno.EPERM, why) from None
        raise


def duplicate(tid: int, number: int, flags: int) -> int:
    """Duplicate a descriptor of a process, or with PIDFD_THREAD of one thread. Raises: OSError."""
    pidfd = _libc.syscall(_PIDFD_OPEN, tid, flags)
    if pidfd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        copy = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(copy)
    finally:
        os.close(pidfd)


class NoWayHomeError(TraceeError):
    """A thread would not find home by itself, as now its stack is none that is known to be one."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "")


class Steps:
    """Runs system calls in a stopped thread: at rest its registers lead home, or to its end.

    Attributes:
        thread: The thread.
        words: Its registers at rest; registers that are not set are those of the program.
        rest: Number of its system call at rest.
        rest_stack: Its stack pointer at rest.
        call_stack: Its stack pointer during another call.
        at: Address of the system call instruction.
    """

    def __init__(
        self, thread: Tracee, words: "ctypes.Array[ctypes.c_uint64]", at: int, rest: int
    ) -> None:
        self.thread = thread
        self.words = type(words).from_buffer_copy(words)
        self.rest = rest
        self.at = at
        self.rest_stack = self.call_stack = words[thread.arch.stack]

    def to_rest(self) -> None:
        """Write the registers at rest. Raises: OSError."""
        arch = self.thread.arch
        words = type(self.words).from_buffer_copy(self.words)
        words[arch.interrupted] = _MINUS_ONE
        words[arch.number] = self.rest
        words[arch.counter] = self.at
        words[arch.stack] = self.rest_stack
        words[arch.arguments[0]] = 0
        self.thread.set_registers(words)

    def enter(self, number: int, *arguments: int) -> None:
        """Run the thread up to its call, and put another one in its place. Raises: TraceeError, OSError."""
        arch = self.thread.arch
        self.to_rest()
        self.step()
        words = self.thread.registers()
        words[arch.interrupted] = number
        words[arch.stack] = self.call_stack
        for index, value in zip(arch.arguments, arguments, strict=False):
            words[index] = value
        self.thread.set_registers(words)

    def call(self, number: int, *arguments: int) -> int:
        """Run one system call; return its result, or minus errno. Raises: TraceeError, OSError."""
        self.enter(number, *arguments)
        self.step()
        return self.leave()

    def leave(self) -> int:
        """Return the result of a call that has ended, and rest again. Raises: OSError."""
        result = ctypes.c_int64(self.thread.registers()[self.thread.arch.result]).value
        self.to_rest()
        return result

    def step(self, *events: int) -> int:
        """Resume the thread until it enters or leaves a system call; return the wait status.

        Args:
            events: ptrace events at which it stops, too.

        Raises:
            TraceeError: It did not get there, or has ended.
        """
        number = 0
        while True:
            self.thread.resume(tracee.SYSCALL, number)
            status = self.thread.wait(None)
            if os.WSTOPSIG(status) == tracee.SYSCALL_STOP or status >> 16 in events:
                return status
            # A stop of all threads holds again once this one is detached.
            number = self.thread.hold_back(status)
            if number < 0:
                if os.WSTOPSIG(status) == signal.SIGSYS:
                    raise TraceeError(errno.EPERM, DISPATCHED)
                raise TraceeError(errno.EIO, f"a call in it ended in signal {os.WSTOPSIG(status)}")


class BorrowedThread:
    """A borrowed thread: from the with statement until its end.

    Attributes:
        thread: The thread.
        survives: Whether the target also survives the end of this process.

    Raises:
        NoWayHomeError: See __init__().
        TraceeError: The thread cannot be borrowed.
        OSError: It has ended.
    """

    def __init__(
        self, thread: Tracee, code: Code, memory: int, *, needs_home: bool = False
    ) -> None:
        """Borrow a stopped thread.

        Args:
            thread: The thread.
            code: Code of its process.
            memory: Descriptor of its /proc/PID/mem, open for writing.
            needs_home: Raise NoWayHomeError rather than borrow one that would not survive the end of
                this process.
        """
        self.thread = thread
        self._memory = memory
        arch = thread.arch
        self.saved = thread.registers()
        if self.saved[arch.mode] != arch.mode_value:
            raise TraceeError(errno.ENOSYS, "it is a 32-bit program")
        if code.is_part_of(self.saved[arch.counter], arch):
            # Below its stack lie the frames of an injector that was killed: they must stay.
            raise TraceeError(
                errno.ETIMEDOUT, "it is still on its way back from an earlier injection"
            )
        if tracee.catches_calls(thread):
            raise TraceeError(errno.EPERM, DISPATCHED)
        set_options(thread)
        thread.begin_call_again()
        self.saved = thread.registers()
        tracee.leave_critical_section(thread, self.saved, memory)
        self.mask = thread.mask()
        self._base = 0  # of the frames; the lower one, which ends a thread, lies there
        self._original = b""
        home = self._write_frames(code)
        self.survives = home != 0
        if needs_home and not home:
            raise NoWayHomeError
        at = code.call_return if home else code.call
        self.steps = Steps(thread, self.saved, at, arch.sigreturn if home else arch.getpid)
        if home:
            self.steps.rest_stack, self.steps.call_stack = home + 8, home

    def _write_frames(self, code: Code) -> int:
        """Write the frame that leads home and the one that ends a thread; return the first's address."""
        arch = self.thread.arch
        features = procfs.status_field(self.thread.tid, "x86_Thread_features")
        if not code.leads_back or "shstk" in features.split():
            return 0  # a shadow stack allows no return that was not called
        prepare()
        floating = return_frame.floating_state(extended_state(self.thread.tid), _layout[0])
        top = self.saved[arch.stack] - _RED_ZONE_BYTES
        floating_at = (top - len(floating)) & -64
        home = (floating_at - return_frame.FRAME_BYTES) & -16
        base = (home - _GAP_BYTES - return_frame.FRAME_BYTES) & -16
        room = stack_below(code, self.saved[arch.stack])
        if not floating or self.saved[arch.stack] - base + _SPARE_STACK_BYTES > room:
            return 0
        words = return_frame.after_restart(
            list(self.saved), arch.interrupted, arch.result, arch.counter
        )
        ending = list(self.saved)
        ending[arch.number], ending[arch.counter] = arch.exit, code.call_return
        ending[arch.stack], ending[arch.arguments[0]] = base, 0
        leading = return_frame.frame(words, self.mask, code.sigreturn, floating_at)
        last = return_frame.frame(ending, tracee.BLOCKED, code.sigreturn)
        image = last.ljust(home - base, b"\0") + leading
        image = image.ljust(floating_at - base, b"\0") + floating
        try:
            original = os.pread(self._memory, len(image), base)
            if len(original) != len(image):
                return 0
            self._base, self._original = base, original
            if os.pwrite(self._memory, image, base) != len(image):
                return 0
        except OSError:
            return 0
        return home

    def __enter__(self) -> "BorrowedThread":
        if self.survives:
            self.steps.to_rest()  # before the mask: the frame restores that, too
        self.thread.block_signals()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the thread back, however long it takes to stop once more."""
        thread = self.thread
        mask = ctypes.create_string_buffer(self.mask, 8)
        try:
            # Only from such a stop does the kernel restart an interrupted call of the program.
            tracee.ptrace(tracee.INTERRUPT, thread.tid)
            thread.run_into_stop()
            # In this order this process may die in between.
            if self.survives:
                thread.set_mask(mask)
            thread.set_registers(self.saved)
            if not self.survives:
                thread.set_mask(mask)
            if self._original:
                os.pwrite(self._memory, self._original, self._base)
        except OSError:
            pass  # killed meanwhile
        except TraceeError as e:
            if e.code != errno.ESRCH:
                raise

    def call(self, number: int, *arguments: int) -> int:
        """Run one system call; return its result, or minus errno. Raises: TraceeError, OSError."""
        return self.steps.call(number, *arguments)

    def start_thread(self) -> "Steps | None":
        """Start a thread with a copy of the descriptor table; the borrowed one waits for its end.

        A child that the target forks meanwhile cannot inherit what is opened there.

        Returns:
            The new thread, at rest; None if none can be started.

        Raises:
            TraceeError: The process has ended.
        """
        if not self.survives:
            return None
        arch = self.thread.arch
        events = (tracee.EVENT_VFORK, tracee.EVENT_CLONE)
        while True:
            self.steps.enter(arch.clone, _CLONE, self._base, 0, 0, 0)
            if self.steps.step(*events) >> 16 in events:
                break
            # With a signal pending, which also SIGSTOP and a freezer are, the kernel wants it made again.
            if self.steps.leave() != -_ERESTARTNOINTR:
                return None
        message = ctypes.c_ulong()
        tracee.ptrace(tracee.GETEVENTMSG, self.thread.tid, 0, ctypes.addressof(message))
        thread = Tracee(message.value, arch, 0, seize=False)
        thread.overdue = self.thread.overdue
        thread.postponed = self.thread.postponed
        status = thread.wait(None)
        if status >> 16 != tracee.EVENT_STOP:
            thread.hold_back(status)
            thread.run_into_stop()
        steps = Steps(thread, thread.registers(), self.steps.at, arch.exit)
        steps.rest_stack = steps.call_stack = self._base
        steps.to_rest()
        return steps

    def end_thread(self, steps: Steps) -> None:
        """End a thread of start_thread(), and with it the borrowed one's call. Raises: TraceeError."""
        try:
            steps.to_rest()
            number = 0
            while True:
                steps.thread.resume(tracee.CONT, max(number, 0))
                number = steps.thread.hold_back(steps.thread.wait(None))
        except (TraceeError, OSError):
            pass  # it has ended
        self.steps.step()
        self.steps.leave()
