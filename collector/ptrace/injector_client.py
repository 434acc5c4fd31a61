"""The collector's side of the injector: the helper process that runs system calls in targets."""

from __future__ import annotations

import errno
import json
import socket
import subprocess

from redirty.collector.errors import ArmError, GoneError
from redirty.collector.linux import capabilities
from redirty.collector.ptrace.spawn import reap, start_helper

_ANSWER_TIMEOUT_S = 120.0
_ANSWER_BYTES = 1 << 17


class AddressesInUseError(ArmError):
    """Memory that must not be moved, even briefly. addresses: all such addresses of the process."""

    def __init__(self, message: str, addresses: list[int]) -> None:
        super().__init__(message, errno.EADDRINUSE)
        self.addresses = addresses


class Injector:
    """An injector process, started on first use.

    The process ends when the collector does, after it has finished its current step.
    """

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def _request(self, request: dict[str, object]) -> tuple[dict[str, object], list[int]]:
        if self._link is None:
            local, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = start_helper("injector", peer)
            local.settimeout(_ANSWER_TIMEOUT_S)
            self._link = local
        try:
            self._link.send(json.dumps(request).encode())
            message, descriptors, _, _ = socket.recv_fds(self._link, _ANSWER_BYTES, 4)
        except OSError as e:
            self.close()  # a late answer must not be taken for that of the next request
            raise ArmError(f"the injector process does not answer: {e}") from None
        if not message:
            raise ArmError("the injector process ended")
        answer: dict[str, object] = json.loads(message)
        return answer, descriptors

    def _ask(
        self, request: dict[str, object], failure: str
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
        raise ArmError(f"{failure}: {reason}", int(str(answer["errno"])))

    def userfaultfd(self, pid: int, timeout_s: float) -> tuple[int, float]:
        """Create a userfaultfd of a process's memory.

        Args:
            pid: The process.
            timeout_s: How long to wait until a thread of it has stopped.

        Returns:
            The descriptor, not yet initialized, and for how many seconds the thread was stopped.

        Raises:
            GoneError: The process is gone.
            ArmError: It failed; code ETIMEDOUT: the process did not stop in time.
        """
        request: dict[str, object] = {"op": "inject", "pid": pid, "timeout_s": timeout_s}
        answer, descriptor = self._ask(request, f"cannot arm process {pid} with userfaultfd")
        if descriptor is None:
            raise ArmError("the injector process returned no descriptor")
        return descriptor, float(str(answer["stopped_s"]))

    def hold_at_exec(self, pid: int) -> None:
        """Arrange for a process to be stopped at the first instruction of the next program that it executes.

        Raises:
            GoneError: The process is gone.
            ArmError: The process cannot be traced.
        """
        self._ask({"op": "exec", "pid": pid}, f"cannot arm process {pid} with userfaultfd")

    def wait_for_exec(self, pid: int, *, userfaultfd: bool) -> int | None:
        """Wait for the exec after hold_at_exec(); the process is then stopped until resume().

        Args:
            pid: The process.
            userfaultfd: Whether to create one of the new memory.

        Returns:
            The userfaultfd, or None.

        Raises:
            GoneError: The process ended instead.
            ArmError: The process cannot be stopped, or no userfaultfd can be created.
        """
        request: dict[str, object] = {"op": "wait_exec", "userfaultfd": userfaultfd}
        _, descriptor = self._ask(request, f"cannot arm process {pid} with userfaultfd")
        return descriptor

    def resume(self) -> None:
        """Resume the process stopped at its exec."""
        self._request({"op": "go"})

    def relocate(
        self,
        pid: int,
        node: int,
        runs: list[tuple[int, int]],
        segments: list[tuple[int, int, str]],
        timeout_s: float,
    ) -> tuple[float, float]:
        """Move memory away and back with all threads stopped, so that its page tables are allocated anew.

        They are allocated on a node if that node has room.

        Args:
            pid: The process.
            node: The NUMA node.
            runs: [start, end) of the memory, multiples of 2 MiB.
            segments: The mappings there, (start, end, permissions).
            timeout_s: How long to wait until the threads have stopped.

        Returns:
            Seconds for which the threads were stopped, and the part of it that the moves took.

        Raises:
            GoneError: The process is gone.
            AddressesInUseError: The kernel uses some of the memory itself.
            ArmError: It failed; code ETIMEDOUT: the threads did not stop in time; EAGAIN: the mappings
                have changed; EINVAL: the process may not use the node.
        """
        request: dict[str, object] = {"op": "relocate", "pid": pid, "node": node, "runs": runs}
        request |= {"segments": segments, "timeout_s": timeout_s}
        answer, _ = self._ask(request, f"cannot relocate page tables of process {pid}")
        return float(str(answer["stopped_s"])), float(str(answer["moved_s"]))

    def close(self) -> None:
        """End the injector; a process that it holds stopped resumes."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            reap(self._process)
            self._process = None
