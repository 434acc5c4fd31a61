"""The process that stops a target for a moment: runs userfaultfd(2) in it, relocates its page tables.

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
  {"op": "relocate", "pid": P, ...}: see relocation.py
Errors: {"ok": false, "errno": N, "why": text}; the target runs on.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import socket
import sys
import time

from . import arch as architectures
from . import relocation, thread_group, tracee
from .tracee import Tracee, TraceeError

_libc = ctypes.CDLL(None, use_errno=True)

REQUEST_BYTES = 1 << 16
UFFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1  # USER_MODE_ONLY: allowed to every user's process
PIDFD_OPEN, PIDFD_GETFD = 434, 438


def system_call_address(pid: int, arch: "architectures.Architecture") -> int:
    """Where the process has a system call instruction mapped: the vdso, or any code of its own."""
    # newline: names of files and programs may hold a carriage return, which ends no line here
    with open(
        f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n"
    ) as maps:
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
    raise TraceeError(errno.ENOENT, "no system call instruction is mapped in it")


def address_beforehand(pid: int) -> int:
    """The same, looked for while the process still runs, as it may have 65,530 mappings; 0: not
    found like this."""
    try:
        return system_call_address(pid, architecture())
    except (TraceeError, OSError):
        return 0


def is_system_call(pid: int, at: int, arch: "architectures.Architecture") -> bool:
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            return bool(os.pread(memory.fileno(), len(arch.instruction), at) == arch.instruction)
    except OSError:
        return False


def status_field(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace", newline="\n") as status:
        for line in status:
            if line.startswith(name + ":"):
                return line.split(":", 1)[1].strip()
    return ""


def running_thread(pid: int) -> int:
    """A thread that lives: the first one may have ended before the others."""
    if threads := thread_group.living_threads(pid):
        return int(threads[0])
    raise TraceeError(errno.ESRCH, "the process ended")


def architecture() -> "architectures.Architecture":
    try:
        return architectures.TABLE[platform.machine()]
    except KeyError:
        raise TraceeError(errno.ENOSYS, f"not built for {platform.machine()} yet") from None


def options_for(pid: int) -> int:
    """What ptrace is to do with it. Errors: TraceeError when a debugger has it."""
    tracer = status_field(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise TraceeError(errno.EBUSY, f"it is being debugged by process {tracer}")
    if status_field(pid, "Seccomp") not in ("", "0"):
        return int(
            tracee.O_SUSPEND_SECCOMP
        )  # its filter may forbid what it is to do, or kill for it
    return 0


def can_step(pid: int) -> None:
    """Errors: TraceeError when it can't go a single step."""
    if int(status_field(pid, "SigIgn") or "0", 16) & 1 << (signal.SIGTRAP - 1):
        raise TraceeError(errno.ENOSYS, "it ignores SIGTRAP, which a step needs")


def seize(pid: int, options: int) -> Tracee:
    options |= options_for(pid)
    try:
        return Tracee(running_thread(pid), architecture(), options)
    except OSError as e:
        if e.errno == errno.EPERM:
            raise TraceeError(
                errno.EPERM, "the kernel does not let it be traced (ptrace)"
            ) from None
        raise


def get_userfaultfd(thread: Tracee, pid: int, at: int) -> int:
    """The thread is stopped: makes the descriptor in it, takes a copy, closes the target's.
    at: where a system call instruction was, or 0."""
    arch = thread.arch
    saved = thread.registers()
    if saved[arch.mode] != arch.mode_value:
        raise TraceeError(errno.ENOSYS, "it is a 32-bit program")
    can_step(pid)
    if not at or not is_system_call(pid, at, arch):
        at = system_call_address(pid, arch)
    pidfd = _libc.syscall(PIDFD_OPEN, pid, 0)
    if pidfd < 0:
        raise TraceeError(errno.ESRCH, "the process ended")
    tracee.leave_critical_section(thread, saved)
    mask = thread.block_signals()
    try:
        number = thread.call(saved, at, arch.userfaultfd, UFFD_FLAGS)
        if number < 0:
            raise TraceeError(-number, f"userfaultfd in it: {os.strerror(-number)}")
        copy = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
        code = ctypes.get_errno()
        thread.call(saved, at, arch.close, number)
        if copy < 0:
            raise TraceeError(code, f"pidfd_getfd: {os.strerror(code)}")
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
        self.held: Tracee | None = None

    def run(self) -> None:
        """Each target is dealt with by a child: a thread that does not come to its stop in time
        stays seized, and would stop for good later on; the child's end frees it in every case."""
        while request := self.request():
            child = os.fork()
            if child == 0:
                try:
                    self.serve(request)
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            if status != 0:
                self.reply({"ok": False, "errno": errno.EIO, "why": "the injector was killed"})

    def request(self) -> bytes:
        """The next one; empty when the collector is gone, also with an answer unread."""
        try:
            return self.link.recv(REQUEST_BYTES)
        except ConnectionResetError:
            return b""

    def serve(self, request: bytes) -> None:
        """Answers one request, and while a target is held at its exec those that follow."""
        while request:
            try:
                self.answer(json.loads(request))
            except TraceeError as e:
                more = {"in_use": e.addresses} if isinstance(e, relocation.InUseError) else {}
                self.reply({"ok": False, "errno": e.code, "why": str(e), **more})
            except (OSError, ValueError) as e:
                code = getattr(e, "errno", None) or errno.EIO
                gone = code in (errno.ESRCH, errno.ENOENT)
                self.reply({"ok": False, "errno": errno.ESRCH if gone else code, "why": str(e)})
            except Exception as e:  # whatever it is: an answer, or the collector would wait for one
                self.reply({"ok": False, "errno": errno.EIO, "why": f"{type(e).__name__}: {e}"})
            if self.held is None:
                return
            request = self.request()
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
            at = address_beforehand(pid)
            begun = time.monotonic()
            thread = seize(pid, 0)
            try:
                thread.interrupt(float(str(request.get("timeout_s", tracee.STOP_TIMEOUT_S))))
                descriptor = get_userfaultfd(thread, pid, at)
            finally:
                thread.release()
            self.reply({"ok": True, "stopped_s": time.monotonic() - begun}, descriptor)
        elif operation == "exec":
            self.held = seize(pid, tracee.O_TRACEEXEC)
            self.pid = pid
            self.reply({"ok": True})
        elif operation == "wait_exec" and self.held is not None:
            self.wait_exec(self.held, bool(request["userfaultfd"]))
        elif operation == "relocate":
            options = options_for(pid)
            can_step(pid)
            self.reply(
                relocation.relocate(request, architecture(), address_beforehand(pid), options)
            )
        elif operation == "go":
            if self.held is not None:
                self.held.release()
            self.held = None
            self.reply({"ok": True})
        else:
            raise TraceeError(errno.EINVAL, f"no such request: {operation}")

    def wait_exec(self, thread: Tracee, userfaultfd: bool) -> None:
        try:
            while True:
                status = thread.wait(30.0)
                if status >> 16 == tracee.EVENT_EXEC:
                    break
                tracee.ptrace(
                    tracee.CONT, thread.tid, 0, 0 if status >> 16 else os.WSTOPSIG(status)
                )
            # Still inside execve, whose result would overwrite a register: on to the first
            # instruction of the new program, where the interruption stops it.
            tracee.ptrace(tracee.INTERRUPT, thread.tid)
            tracee.ptrace(tracee.CONT, thread.tid)
            thread.wait_for_stop(tracee.STOP_TIMEOUT_S)
            self.reply({"ok": True}, get_userfaultfd(thread, self.pid, 0) if userfaultfd else None)
        except (TraceeError, OSError):
            thread.release()
            self.held = None
            raise


def main() -> None:
    tracee.outlive_others()
    Server(socket.socket(fileno=int(sys.argv[1]))).run()
