"""The collector's side of the injector: a process beside it that gets userfaultfds of targets."""

from __future__ import annotations

import errno
import json
import socket
import subprocess

from redirty.collector.errors import ArmError, GoneError
from redirty.collector.linux import capabilities
from redirty.collector.ptrace.spawn import reap, start_helper

_ANSWER_TIMEOUT_S = 40.0
_ANSWER_BYTES = 1 << 17


class AddressesInUseError(ArmError):
    """Memory that may not be away for a moment. addresses: all such of the process."""

    def __init__(self, message: str, addresses: list[int]) -> None:
        super().__init__(message, errno.EADDRINUSE)
        self.addresses = addresses


class Injector:
    """Started on first use; ends when the collector does, after what it is doing is done."""

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def _request(self, request: dict[str, object]) -> tuple[dict[str, object], list[int]]:
        if self._link is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = start_helper("injector", theirs)
            ours.settimeout(_ANSWER_TIMEOUT_S)
            self._link = ours
        try:
            self._link.send(json.dumps(request).encode())
            message, descriptors, _, _ = socket.recv_fds(self._link, _ANSWER_BYTES, 4)
        except OSError as e:
            raise ArmError(f"the process that stops targets does not answer: {e}") from None
        if not message:
            raise ArmError("the process that stops targets ended")
        answer: dict[str, object] = json.loads(message)
        return answer, descriptors

    def _ask(
        self, request: dict[str, object], pid: int, what: str = "arm process {} with userfaultfd"
    ) -> tuple[dict[str, object], int | None]:
        answer, descriptors = self._request(request)
        if answer["ok"]:
            return answer, descriptors[0] if descriptors else None
        if answer["errno"] == errno.ESRCH:
            raise GoneError
        reason = str(answer["why"])
        if answer["errno"] == errno.EPERM:
            lacking = capabilities.root_lacks(capabilities.PTRACE)
            reason += f": that needs {lacking}" if lacking else ""
        if answer["errno"] == errno.EADDRINUSE:
            raise AddressesInUseError(reason, [int(a) for a in answer.get("in_use", [])])  # type: ignore[attr-defined]
        raise ArmError(f"cannot {what.format(pid)}: {reason}", int(str(answer["errno"])))

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

    def relocate(
        self,
        pid: int,
        node: int,
        runs: list[tuple[int, int]],
        segments: list[tuple[int, int, str]],
        timeout_s: float,
    ) -> tuple[float, float]:
        """Moves memory away and back with all threads held, so that its page tables are made anew,
        on a node if that has room. runs: [start, end), multiples of 2 MiB. segments: what is mapped
        there, (start, end, permissions). timeout_s: how long to wait for the threads to stop.

        Returns for how many seconds they stood still, and how many of those the moves took.
        Errors: GoneError; AddressesInUseError; ArmError, with the reason (code ETIMEDOUT: they did not stop;
        EAGAIN: other mappings are there now; EINVAL: the node is not allowed to it).
        """
        request: dict[str, object] = {"op": "relocate", "pid": pid, "node": node, "runs": runs}
        request |= {"segments": segments, "timeout_s": timeout_s}
        answer, _ = self._ask(request, pid, "relocate page tables of process {}")
        return float(str(answer["stopped_s"])), float(str(answer["moved_s"]))

    def close(self) -> None:
        """Ends the injector; a process it held runs on."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            reap(self._process)
            self._process = None
