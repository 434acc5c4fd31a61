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

Each request has a process of its own. One whose target does not run on (frozen, throttled) answers
ETIMEDOUT, and stays until it does, as its registers must be restored then.
"""

import errno
import gc
import json
import os
import select
import signal
import socket
import sys

from . import borrowed, code_search, injection, procfs, relocation, tracee
from .arch import architecture
from .code_search import Code
from .errors import TraceeError
from .tracee import Tracee

REQUEST_BYTES = 1 << 16
_SEARCH_S, _POLL_S = (
    10.0,
    0.2,
)  # for reading a target's code; a file whose server is silent would take for ever
_BEGINS, _LEFT_ALONE = b"b", b"l"


class Server:
    """Answers the collector's requests until it closes its end.

    Attributes:
        link: The socket.
        seized: A thread seized for its exec.
        report: In the child, where it tells the parent that it begins to touch the target, and that it is
            not to be waited for.
        answered: Whether the request was answered while the child still has to restore the target.
    """

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.seized: Tracee | None = None
        self.report = -1
        self.answered = False

    def run(self) -> None:
        """Serve each target in a child process.

        A thread that does not stop in time stays seized, and would later stop for good; the end of
        the child releases it in every case.
        """
        while request := self.request():
            progress, report = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(progress)
                self.report = report
                try:
                    self.serve(request)
                finally:
                    os._exit(0)
            os.close(report)
            self.attend(child, progress)
            os.close(progress)

    def attend(self, child: int, progress: int) -> None:
        """Wait until a child has ended, or only waits for its target to run on."""
        waiting = select.poll()
        waiting.register(progress, select.POLLIN)
        waiting.register(self.link, 0)  # reports that the collector is gone
        asleep_s, touched = 0.0, False
        while True:
            ready = dict(waiting.poll(None if touched else _POLL_S * 1000))
            if progress in ready:
                told = os.read(progress, 1)
                if told == _LEFT_ALONE:
                    return
                if not told:
                    break
                touched = True
            elif touched:
                return  # the collector is gone; the child restores the target and ends
            else:
                # It reads; one that is asleep all the time waits for what may never come.
                asleep_s = 0.0 if procfs.runs(child) else asleep_s + _POLL_S
                if ready or asleep_s > _SEARCH_S:
                    os.kill(child, signal.SIGKILL)  # it has not touched the target yet
                    os.waitpid(child, 0)
                    self.refuse(
                        TraceeError(
                            errno.EBUSY,
                            f"reading its code takes over {_SEARCH_S:.0f} s (from a file server that is silent?)",
                        )
                    )
                    return
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
                self.refuse(e)
            except (OSError, ValueError) as e:
                code = getattr(e, "errno", None) or errno.EIO
                gone = code in (errno.ESRCH, errno.ENOENT)
                self.reply({"ok": False, "errno": errno.ESRCH if gone else code, "why": str(e)})
            except Exception as e:  # any: without an answer the collector would wait
                self.reply({"ok": False, "errno": errno.EIO, "why": f"{type(e).__name__}: {e}"})
            if self.seized is None or self.answered:
                return
            request = self.request()
        if self.seized is not None:
            self.seized.release()

    def reply(self, answer: dict[str, object], descriptor: int | None = None) -> None:
        """Send an answer, with a descriptor that is closed here."""
        message = json.dumps(answer).encode()
        try:
            if self.answered:
                pass  # too late: the target did not run
            elif descriptor is None:
                self.link.send(message)
            else:
                socket.send_fds(self.link, [message], [descriptor])
        except OSError:
            pass  # the collector is gone
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def refuse(self, error: TraceeError) -> None:
        """Send the answer of a request that failed."""
        more = {"in_use": error.addresses} if isinstance(error, relocation.InUseError) else {}
        self.reply({"ok": False, "errno": error.code, "why": str(error), **more})

    def overdue(self) -> None:
        """Answer that the target does not run on; what was begun in it is undone as soon as it does."""
        self.refuse(
            TraceeError(
                errno.ETIMEDOUT,
                "it does not run (frozen or throttled?); it is restored as soon as it does",
            )
        )
        self.answered = True
        self.link.close()
        os.write(self.report, _LEFT_ALONE)

    def answer(self, request: dict[str, object]) -> None:
        """Carry out one request and reply. Raises: TraceeError, OSError."""
        operation = request["op"]
        pid = int(str(request.get("pid", 0)))
        if operation == "inject":
            code = self.code_of(pid)
            timeout_s = float(str(request.get("timeout_s", tracee.STOP_TIMEOUT_S)))
            descriptor, stopped_s = injection.inject(pid, code, timeout_s, self.overdue)
            self.reply({"ok": True, "stopped_s": stopped_s}, descriptor)
        elif operation == "exec":
            os.write(self.report, _BEGINS)
            injection.require_usable(pid)
            self.seized = injection.seize(pid, pid, tracee.O_TRACEEXEC)
            self.pid = pid
            self.reply({"ok": True})
        elif operation == "wait_exec" and self.seized is not None:
            self.wait_exec(self.seized, bool(request["userfaultfd"]))
        elif operation == "relocate":
            code = self.code_of(pid)
            self.reply(relocation.relocate(request, architecture(), code, self.overdue))
        elif operation == "go":
            if self.seized is not None:
                self.seized.release()
            self.seized = None
            self.reply({"ok": True})
        else:
            raise TraceeError(errno.EINVAL, f"unknown request: {operation}")

    def code_of(self, pid: int) -> Code:
        """Find the code of a process that is to be touched next. Raises: TraceeError, OSError."""
        injection.require_usable(pid)
        code = code_search.search(pid, architecture())
        os.write(self.report, _BEGINS)
        return code

    def wait_exec(self, thread: Tracee, userfaultfd: bool) -> None:
        """Wait for an exec, stop at the new program's first instruction, and reply."""
        try:
            while True:
                status = thread.wait(30.0)
                if status >> 16 == tracee.EVENT_EXEC:
                    break
                thread.resume(tracee.CONT, 0 if status >> 16 else os.WSTOPSIG(status))
            # Still inside execve, whose result would overwrite a register: continue to the first
            # instruction of the new program, where the interruption stops it.
            tracee.ptrace(tracee.INTERRUPT, thread.tid)
            thread.resume(tracee.CONT)
            thread.wait_for_stop(tracee.STOP_TIMEOUT_S)
            descriptor = None
            if userfaultfd:
                thread.overdue = self.overdue
                code = code_search.search(self.pid, architecture())
                descriptor = injection.get_userfaultfd(thread, self.pid, code)
            self.reply({"ok": True}, descriptor)
        except (TraceeError, OSError):
            thread.release()
            self.seized = None
            raise


def main() -> None:
    """Run the injector; argv[1] is its end of the socket."""
    borrowed.prepare()
    tracee.outlive_others()
    gc.disable()  # it would take its time while a target is stopped
    Server(socket.socket(fileno=int(sys.argv[1]))).run()
