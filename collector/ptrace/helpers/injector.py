"""The process that stops a target briefly: runs userfaultfd(2) in it, relocates its page tables.

It is a separate process, run with the bare library only, for one reason: it must not die between
changing a thread's registers and restoring them. The collector can be killed at any moment; the
injector has a session of its own, ignores all signals that can be ignored, ends by itself when the collector is
gone, and never before the target is restored.

Protocol, over a SOCK_SEQPACKET socket (argv[1] is its descriptor): a JSON request, a JSON answer,
with the userfaultfd attached to it.
  {"op": "inject", "pid": P, "timeout_s": T}
                                  -> {"ok": true, "stopped_s": T} + descriptor
  {"op": "exec", "pid": P}        -> {"ok": true}, seized until its next exec ...
  {"op": "wait_exec", "userfaultfd": true}
      -> {"ok": true} + descriptor, the target stopped at its first instruction
  {"op": "go"}                    -> {"ok": true}, the target resumes
  {"op": "relocate", "pid": P, ...}: see relocation.py
On failure: {"ok": false, "errno": N, "why": text}; the target keeps running.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time

from . import procfs, relocation, tracee
from .arch import Architecture, architecture
from .errors import TraceeError
from .tracee import Tracee

_libc = ctypes.CDLL(None, use_errno=True)

REQUEST_BYTES = 1 << 16
UFFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1  # USER_MODE_ONLY: allowed to every user's process
PIDFD_OPEN, PIDFD_GETFD = 434, 438


def system_call_address(pid: int, arch: Architecture) -> int:
    """Find a system call instruction in a process: in the vdso, or in any of its code.

    Raises:
        TraceeError: No such instruction is mapped (ENOENT).
        OSError: The process is gone.
    """
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as maps:
        found = procfs.parse_maps(maps.readall())
    code = [(mapping, procfs.path_of(rest)) for mapping, rest in found if "x" in mapping[2]]
    code.sort(key=lambda one: one[1] != procfs.VDSO)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for (start, end, _), path in code:
            if path == procfs.VSYSCALL:
                continue
            for at in range(start, end, 1 << 20):
                try:
                    text = os.pread(memory.fileno(), min(1 << 20, end - at), at)
                except OSError:
                    break
                offset = text.find(arch.instruction)
                if offset >= 0:
                    return at + offset
    raise TraceeError(errno.ENOENT, "no system call instruction is mapped in it")


def address_beforehand(pid: int) -> int:
    """Find a system call instruction while the process still runs; return 0 if that fails.

    Up to 65,530 mappings may have to be searched.
    """
    try:
        return system_call_address(pid, architecture())
    except (TraceeError, OSError):
        return 0


def is_system_call(pid: int, at: int, arch: Architecture) -> bool:
    """Return whether a process has a system call instruction at an address."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            return bool(os.pread(memory.fileno(), len(arch.instruction), at) == arch.instruction)
    except OSError:
        return False


def running_thread(pid: int) -> int:
    """Return a thread that has not ended: the first one may have ended before the others.

    Raises:
        TraceeError: All have ended (ESRCH).
    """
    if threads := procfs.living_threads(pid):
        return threads[0]
    raise TraceeError(errno.ESRCH, "the process ended")


def options_for(pid: int) -> int:
    """Choose the ptrace options for a process.

    Raises:
        TraceeError: The process is traced already (EBUSY).
    """
    tracer = procfs.status_field(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise TraceeError(errno.EBUSY, f"already traced by process {tracer}")
    if procfs.status_field(pid, "Seccomp") not in ("", "0"):
        # its filter may forbid the system calls to run in it, or kill for them
        return tracee.O_SUSPEND_SECCOMP
    return 0


def require_steps(pid: int) -> None:
    """Check that a process can be single-stepped.

    Raises:
        TraceeError: The process ignores SIGTRAP (ENOSYS).
    """
    if int(procfs.status_field(pid, "SigIgn") or "0", 16) & 1 << (signal.SIGTRAP - 1):
        raise TraceeError(errno.ENOSYS, "it ignores SIGTRAP, which a step needs")


def seize(pid: int, options: int) -> Tracee:
    """Seize a thread of a process, which keeps running.

    Raises:
        TraceeError: The process is traced already, or may not be traced.
        OSError: The process is gone.
    """
    options |= options_for(pid)
    try:
        return Tracee(running_thread(pid), architecture(), options)
    except OSError as e:
        if e.errno == errno.EPERM:
            raise TraceeError(
                errno.EPERM, "the kernel does not allow it to be traced (ptrace)"
            ) from None
        raise


def get_userfaultfd(thread: Tracee, pid: int, at: int) -> int:
    """Create a userfaultfd in a stopped thread, duplicate it into this process, close the target's.

    Args:
        thread: The stopped thread.
        pid: Its process.
        at: Where a system call instruction was, or 0.

    Raises:
        TraceeError: The target cannot run the system call, or the kernel refused it.
        OSError: The process is gone.
    """
    arch = thread.arch
    saved = thread.registers()
    if saved[arch.mode] != arch.mode_value:
        raise TraceeError(errno.ENOSYS, "it is a 32-bit program")
    require_steps(pid)
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
        self.seized: Tracee | None = None

    def run(self) -> None:
        """Serve each target in a child process.

        A thread that does not stop in time stays seized, and would later stop for good; the end of
        the child releases it in every case.
        """
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
        """Receive the next request; empty once the collector is gone, also with an answer unread."""
        try:
            return self.link.recv(REQUEST_BYTES)
        except ConnectionResetError:
            return b""

    def serve(self, request: bytes) -> None:
        """Answer one request, and those that follow while a target is seized for its exec."""
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
            except Exception as e:  # any: without an answer the collector would wait
                self.reply({"ok": False, "errno": errno.EIO, "why": f"{type(e).__name__}: {e}"})
            if self.seized is None:
                return
            request = self.request()
        if self.seized is not None:
            self.seized.release()

    def reply(self, answer: dict[str, object], descriptor: int | None = None) -> None:
        """Send an answer, with a descriptor that is closed here."""
        message = json.dumps(answer).encode()
        try:
            if descriptor is None:
                self.link.send(message)
            else:
                socket.send_fds(self.link, [message], [descriptor])
        except OSError:
            pass  # the collector is gone
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def answer(self, request: dict[str, object]) -> None:
        """Carry out one request and reply. Raises: TraceeError, OSError."""
        operation = request["op"]
        pid = int(str(request.get("pid", 0)))
        if operation == "inject":
            at = address_beforehand(pid)
            started = time.monotonic()
            thread = seize(pid, 0)
            try:
                thread.interrupt(float(str(request.get("timeout_s", tracee.STOP_TIMEOUT_S))))
                descriptor = get_userfaultfd(thread, pid, at)
            finally:
                thread.release()
            self.reply({"ok": True, "stopped_s": time.monotonic() - started}, descriptor)
        elif operation == "exec":
            self.seized = seize(pid, tracee.O_TRACEEXEC)
            self.pid = pid
            self.reply({"ok": True})
        elif operation == "wait_exec" and self.seized is not None:
            self.wait_exec(self.seized, bool(request["userfaultfd"]))
        elif operation == "relocate":
            options = options_for(pid)
            require_steps(pid)
            self.reply(
                relocation.relocate(request, architecture(), address_beforehand(pid), options)
            )
        elif operation == "go":
            if self.seized is not None:
                self.seized.release()
            self.seized = None
            self.reply({"ok": True})
        else:
            raise TraceeError(errno.EINVAL, f"unknown request: {operation}")

    def wait_exec(self, thread: Tracee, userfaultfd: bool) -> None:
        """Wait for an exec, stop at the new program's first instruction, and reply."""
        try:
            while True:
                status = thread.wait(30.0)
                if status >> 16 == tracee.EVENT_EXEC:
                    break
                tracee.ptrace(
                    tracee.CONT, thread.tid, 0, 0 if status >> 16 else os.WSTOPSIG(status)
                )
            # Still inside execve, whose result would overwrite a register: continue to the first
            # instruction of the new program, where the interruption stops it.
            tracee.ptrace(tracee.INTERRUPT, thread.tid)
            tracee.ptrace(tracee.CONT, thread.tid)
            thread.wait_for_stop(tracee.STOP_TIMEOUT_S)
            self.reply({"ok": True}, get_userfaultfd(thread, self.pid, 0) if userfaultfd else None)
        except (TraceeError, OSError):
            thread.release()
            self.seized = None
            raise


def main() -> None:
    """Run the injector; argv[1] is its end of the socket."""
    tracee.outlive_others()
    Server(socket.socket(fileno=int(sys.argv[1]))).run()
