"""The process that stops a target for a moment and runs userfaultfd(2) in it.

A process of its own, started at once by the collector and run with the bare library only, for
one reason: between changing a thread's registers and putting them back nobody may die. The
collector can be killed at any moment; this one has its own session, blocks what can be blocked,
ends by itself when the collector is gone, and never before the target is as it was.

Protocol, over a SOCK_SEQPACKET socket (argv[1] is its descriptor): a JSON request, a JSON
answer, with the userfaultfd attached to it.
  {"op": "inject", "pid": P, "timeout_s": T}
                                  -> {"ok": true, "stopped_s": T} + descriptor
  {"op": "exec", "pid": P}        -> {"ok": true}, held until its next exec ...
  {"op": "wait_exec", "userfaultfd": true}
      -> {"ok": true} + descriptor, the target stopped at its first instruction
  {"op": "go"}                    -> {"ok": true}, the target runs
Errors: {"ok": false, "errno": N, "why": text}; the target runs on.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import architectures  # type: ignore[import-not-found]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

SEIZE, INTERRUPT, DETACH, CONT, SINGLESTEP = 0x4206, 0x4207, 17, 7, 9
GETREGSET, SETREGSET, GETSIGMASK, SETSIGMASK = 0x4204, 0x4205, 0x420A, 0x420B
O_TRACEEXEC, O_SUSPEND_SECCOMP = 0x10, 1 << 21
GET_RSEQ = 0x420F
NT_PRSTATUS = 1
EVENT_EXEC, EVENT_STOP = 4, 128
WALL = 0x40000000
UFFD_FLAGS = (
    os.O_CLOEXEC | os.O_NONBLOCK | 1
)  # UFFD_USER_MODE_ONLY: allowed to every user's process
STOP_TIMEOUT_S = 2.0
PIDFD_OPEN, PIDFD_GETFD = 434, 438


class RefusedError(Exception):
    """The target cannot be used this way; it runs on."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, tid, address, data)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Thread:
    """One seized thread."""

    def __init__(self, tid: int, arch: "architectures.Architecture", options: int) -> None:
        self.tid = tid
        self.arch = arch
        ptrace(SEIZE, tid, 0, options)
        self.stopped = False
        self.deliver = 0

    def interrupt(self, timeout_s: float) -> None:
        """Stops it, waiting up to timeout_s: a thread deep in the kernel may not come."""
        ptrace(INTERRUPT, self.tid)
        self.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        """The wait status of its next stop."""
        deadline = time.monotonic() + timeout_s
        pause = 0.00002
        while True:
            got, status = os.waitpid(self.tid, os.WNOHANG | WALL)
            if got == self.tid:
                break
            if time.monotonic() > deadline:
                raise RefusedError(
                    errno.ETIMEDOUT, "the thread does not come to a stop (waiting in the kernel)"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.002)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            raise RefusedError(errno.ESRCH, "the process ended")
        self.stopped = True
        return status

    def registers(self) -> "ctypes.Array[ctypes.c_uint64]":
        words: ctypes.Array[ctypes.c_uint64] = (ctypes.c_uint64 * self.arch.registers)()
        vector = struct.pack("PN", ctypes.addressof(words), ctypes.sizeof(words))
        buffer = ctypes.create_string_buffer(vector, len(vector))
        ptrace(GETREGSET, self.tid, NT_PRSTATUS, ctypes.addressof(buffer))
        return words

    def set_registers(self, words: "ctypes.Array[ctypes.c_uint64]") -> None:
        vector = struct.pack("PN", ctypes.addressof(words), ctypes.sizeof(words))
        buffer = ctypes.create_string_buffer(vector, len(vector))
        ptrace(SETREGSET, self.tid, NT_PRSTATUS, ctypes.addressof(buffer))

    def block_signals(self) -> "ctypes.Array[ctypes.c_char]":
        """Blocks the thread's signals; the mask it had. A handler must not run on registers that
        are not the program's. SIGTRAP stays open: it tells of a step, and the kernel would
        reset its handler if it had to force it through."""
        old = ctypes.create_string_buffer(8)
        ptrace(GETSIGMASK, self.tid, 8, ctypes.addressof(old))
        self.set_mask(ctypes.create_string_buffer(b"\xef" + b"\xff" * 7, 8))
        return old

    def set_mask(self, mask: "ctypes.Array[ctypes.c_char]") -> None:
        ptrace(SETSIGMASK, self.tid, 8, ctypes.addressof(mask))

    def call(
        self, saved: "ctypes.Array[ctypes.c_uint64]", at: int, number: int, *arguments: int
    ) -> int:
        """Runs one system call in the thread: its result, or minus errno."""
        arch = self.arch
        words = type(saved).from_buffer_copy(saved)
        words[arch.interrupted] = 0xFFFF_FFFF_FFFF_FFFF
        words[arch.number] = number
        words[arch.counter] = at
        for place, value in zip(arch.arguments, arguments, strict=False):
            words[place] = value
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
        raise RefusedError(errno.EIO, "the system call did not run as expected")

    def release(self) -> None:
        """Lets it run on, with a signal that came meanwhile."""
        try:
            ptrace(DETACH, self.tid, 0, self.deliver)
        except OSError:
            pass  # gone, or not stopped: then this process's end releases it


def system_call_address(pid: int, arch: "architectures.Architecture") -> int:
    """Where the process has a system call instruction mapped: the vdso, or any code of its own."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        lines = [line.split(None, 5) for line in maps]
    code = [line for line in lines if "x" in line[1] and "[vsyscall]" not in line[-1]]
    code.sort(key=lambda line: "[vdso]" not in line[-1])
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in code:
            start, end = (int(x, 16) for x in line[0].split("-"))
            for at in range(start, end, 1 << 20):
                try:
                    found = os.pread(memory.fileno(), min(1 << 20, end - at), at).find(
                        arch.instruction
                    )
                except OSError:
                    break
                if found >= 0:
                    return at + found
    raise RefusedError(errno.ENOENT, "no system call instruction is mapped in it")


def status_field(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith(name + ":"):
                return line.split(":", 1)[1].strip()
    return ""


def running_thread(pid: int) -> int:
    """A thread that lives: the first one may have ended before the others."""
    for tid in sorted(int(t) for t in os.listdir(f"/proc/{pid}/task")):
        with open(f"/proc/{pid}/task/{tid}/stat", encoding="utf-8", errors="replace") as stat:
            if stat.read().rpartition(")")[2].split()[0] not in ("Z", "X"):
                return tid
    raise RefusedError(errno.ESRCH, "the process ended")


def architecture() -> "architectures.Architecture":
    try:
        return architectures.TABLE[platform.machine()]
    except KeyError:
        raise RefusedError(errno.ENOSYS, f"not built for {platform.machine()} yet") from None


def seize(pid: int, options: int) -> Thread:
    tracer = status_field(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise RefusedError(errno.EBUSY, f"it is being debugged by process {tracer}")
    if status_field(pid, "Seccomp") not in ("", "0"):
        options |= O_SUSPEND_SECCOMP  # its filter may forbid userfaultfd, or kill for it
    try:
        return Thread(running_thread(pid), architecture(), options)
    except OSError as e:
        if e.errno == errno.EPERM:
            raise RefusedError(
                errno.EPERM, "the kernel does not let it be traced (ptrace)"
            ) from None
        raise


def leave_critical_section(thread: Thread, words: "ctypes.Array[ctypes.c_uint64]") -> None:
    """Restartable sequences: a thread stopped inside one must go on at its abort handler. The
    kernel would see to that on the way back, but not with a program counter that was borrowed."""
    buffer = ctypes.create_string_buffer(24)
    try:
        ptrace(GET_RSEQ, thread.tid, 24, ctypes.addressof(buffer))
    except OSError:
        return  # a kernel before 5.13, or built without
    (area,) = struct.unpack_from("<Q", buffer)
    if not area:
        return
    with open(f"/proc/{thread.tid}/mem", "r+b", buffering=0) as memory:
        try:
            (section,) = struct.unpack("<Q", os.pread(memory.fileno(), 8, area + 8))
        except OSError:
            return  # at an exec: the old program's, no more there
        if not section:
            return
        start, length, abort = struct.unpack("<QQQ", os.pread(memory.fileno(), 24, section + 8))
        if 0 <= words[thread.arch.counter] - start < length:
            words[thread.arch.counter] = abort
            os.pwrite(memory.fileno(), bytes(8), area + 8)


def get_userfaultfd(thread: Thread, pid: int) -> int:
    """The thread is stopped: makes the descriptor in it, takes a copy, closes the target's."""
    arch = thread.arch
    saved = thread.registers()
    if saved[arch.mode] != arch.mode_value:
        raise RefusedError(errno.ENOSYS, "it is a 32-bit program")
    if int(status_field(pid, "SigIgn") or "0", 16) & 1 << (signal.SIGTRAP - 1):
        raise RefusedError(errno.ENOSYS, "it ignores SIGTRAP, which a step needs")
    at = system_call_address(pid, arch)
    pidfd = _libc.syscall(PIDFD_OPEN, pid, 0)
    if pidfd < 0:
        raise RefusedError(errno.ESRCH, "the process ended")
    leave_critical_section(thread, saved)
    mask = thread.block_signals()
    try:
        number = thread.call(saved, at, arch.userfaultfd, UFFD_FLAGS)
        if number < 0:
            raise RefusedError(-number, f"userfaultfd in it: {os.strerror(-number)}")
        copy = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
        code = ctypes.get_errno()
        thread.call(saved, at, arch.close, number)
        if copy < 0:
            raise RefusedError(code, f"pidfd_getfd: {os.strerror(code)}")
        return int(copy)
    finally:
        try:
            thread.set_registers(saved)
            thread.set_mask(mask)
        except OSError:
            pass  # killed meanwhile
        os.close(pidfd)


class Server:
    """Answers the collector's requests until it closes its end."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.held: Thread | None = None

    def run(self) -> None:
        """Each target is dealt with by a child: a thread that does not come to its stop in time
        stays seized, and would stop for good later on; the child's end frees it in every case."""
        while request := self.link.recv(4096):
            child = os.fork()
            if child == 0:
                try:
                    self.serve(request)
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            if status != 0:
                self.reply({"ok": False, "errno": errno.EIO, "why": "the injector was killed"})

    def serve(self, request: bytes) -> None:
        """Answers one request, and while a target is held at its exec those that follow."""
        while request:
            try:
                self.answer(json.loads(request))
            except RefusedError as e:
                self.reply({"ok": False, "errno": e.code, "why": str(e)})
            except (OSError, ValueError) as e:
                code = getattr(e, "errno", None) or errno.EIO
                gone = code in (errno.ESRCH, errno.ENOENT)
                self.reply({"ok": False, "errno": errno.ESRCH if gone else code, "why": str(e)})
            if self.held is None:
                return
            request = self.link.recv(4096)
        if self.held is not None:
            self.held.release()

    def reply(self, answer: dict[str, object], descriptor: int | None = None) -> None:
        message = json.dumps(answer).encode()
        try:
            if descriptor is None:
                self.link.send(message)
            else:
                socket.send_fds(self.link, [message], [descriptor])
        except OSError:
            pass  # the collector is gone; its descriptor goes with this process
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def answer(self, request: dict[str, object]) -> None:
        operation = request["op"]
        pid = int(str(request.get("pid", 0)))
        if operation == "inject":
            begun = time.monotonic()
            thread = seize(pid, 0)
            try:
                thread.interrupt(float(str(request.get("timeout_s", STOP_TIMEOUT_S))))
                descriptor = get_userfaultfd(thread, pid)
            finally:
                thread.release()
            self.reply({"ok": True, "stopped_s": time.monotonic() - begun}, descriptor)
        elif operation == "exec":
            self.held = seize(pid, O_TRACEEXEC)
            self.pid = pid
            self.reply({"ok": True})
        elif operation == "wait_exec" and self.held is not None:
            self.wait_exec(self.held, bool(request["userfaultfd"]))
        elif operation == "go":
            if self.held is not None:
                self.held.release()
            self.held = None
            self.reply({"ok": True})
        else:
            raise RefusedError(errno.EINVAL, f"no such request: {operation}")

    def wait_exec(self, thread: Thread, userfaultfd: bool) -> None:
        try:
            while True:
                status = thread.wait(30.0)
                if status >> 16 == EVENT_EXEC:
                    break
                ptrace(CONT, thread.tid, 0, 0 if status >> 16 else os.WSTOPSIG(status))
            # Still inside execve, whose result would overwrite a register: on to the first
            # instruction of the new program, where the interruption stops it.
            ptrace(INTERRUPT, thread.tid)
            ptrace(CONT, thread.tid)
            thread.wait(STOP_TIMEOUT_S)
            self.reply({"ok": True}, get_userfaultfd(thread, self.pid) if userfaultfd else None)
        except (RefusedError, OSError):
            thread.release()
            self.held = None
            raise


def main() -> None:
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
    Server(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
