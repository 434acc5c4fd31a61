"""The collector's side of the injector: a process beside it that gets userfaultfds of targets."""

from __future__ import annotations

import errno
import json
import socket
import subprocess

from redirty.collector import capabilities
from redirty.collector.arm.base import ArmError, GoneError
from redirty.collector.arm.beside import start_beside

_ANSWER_TIMEOUT_S = 40.0


class Injector:
    """Started on first use; ends when the collector does, after what it is doing is done."""

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def _request(self, request: dict[str, object]) -> tuple[dict[str, object], list[int]]:
        if self._link is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = start_beside("injector.py", theirs)
            ours.settimeout(_ANSWER_TIMEOUT_S)
            self._link = ours
        try:
            self._link.send(json.dumps(request).encode())
            message, descriptors, _, _ = socket.recv_fds(self._link, 4096, 4)
        except OSError as e:
            raise ArmError(f"the process that stops targets does not answer: {e}") from None
        if not message:
            raise ArmError("the process that stops targets ended")
        answer: dict[str, object] = json.loads(message)
        return answer, descriptors

    def _ask(self, request: dict[str, object], pid: int) -> tuple[dict[str, object], int | None]:
        answer, descriptors = self._request(request)
        if answer["ok"]:
            return answer, descriptors[0] if descriptors else None
        if answer["errno"] == errno.ESRCH:
            raise GoneError
        reason = str(answer["why"])
        if answer["errno"] == errno.EPERM:
            lacking = capabilities.root_lacks(capabilities.PTRACE)
            reason += f": that needs {lacking}" if lacking else ""
        raise ArmError(
            f"cannot arm process {pid} with userfaultfd: {reason}", int(str(answer["errno"]))
        )

    def userfaultfd(self, pid: int, timeout_s: float) -> tuple[int, float]:
        """A userfaultfd of the process's memory, not yet initialised, and for how many seconds
        the process stood still. timeout_s: how long to wait for it to come to a stop.

        Errors: GoneError, ArmError with the reason (code ETIMEDOUT: it did not stop).
        """
        request: dict[str, object] = {"op": "inject", "pid": pid, "timeout_s": timeout_s}
        answer, descriptor = self._ask(request, pid)
        if descriptor is None:
            raise ArmError("no descriptor came back")
        return descriptor, float(str(answer["stopped_s"]))

    def hold_at_exec(self, pid: int) -> None:
        """The process will be stopped at the first instruction of the next program it runs."""
        self._ask({"op": "exec", "pid": pid}, pid)

    def wait_for_exec(self, pid: int, *, userfaultfd: bool) -> int | None:
        """Waits for that; the process then stands until go(). Returns a userfaultfd of the new
        memory if it is wanted.

        Errors: GoneError (it ended instead), ArmError.
        """
        _, descriptor = self._ask({"op": "wait_exec", "userfaultfd": userfaultfd}, pid)
        return descriptor

    def go(self) -> None:
        """The process held at its exec runs."""
        self._request({"op": "go"})

    def close(self) -> None:
        """Ends the injector; a process it held runs on."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.wait()
            self._process = None
