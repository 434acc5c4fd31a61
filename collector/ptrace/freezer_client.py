"""The collector's side of the freezer: the helper process that stops a target's threads."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
from dataclasses import dataclass
from typing import NoReturn

from redirty.collector.errors import RedirtyError
from redirty.collector.ptrace.spawn import reap, start_helper

_ANSWER_S = 5.0  # for an answer that needs no waiting
_SO_SNDBUFFORCE = 32
_SEND_BUFFER_BYTES = 16 << 20  # holds the states of some 4,000 threads until they are read


# NT_X86_XSTATE starts with the contents of NT_PRFPREG, but for the bytes that say what else is in it.
# arch/x86/include/asm/fpu/types.h: fxregs_state, sw_reserved
_FXSAVE_BYTES, _FXSAVE_OWN_BYTES = 512, 464


class FreezeError(RedirtyError):
    """The target could not be stopped, or not for long enough; it keeps running.

    Attributes:
        held_s: For how long it stood still; None: not known.
    """

    def __init__(self, message: str, held_s: float | None = None) -> None:
        super().__init__(message)
        self.held_s = held_s


@dataclass(frozen=True)
class ThreadState:
    """The state of a stopped thread.

    Attributes:
        pid: Its process.
        tid: Its thread ID.
        registers: General registers, as ptrace returns them.
        floating: Floating point registers; empty if there are none.
        extended: Extended registers; empty if there are none.
        mask: Blocked signals, 8 bytes.
        stat: Its stat file in /proc.
        status: Its status file, for the first thread of a process; else empty.
    """

    pid: int
    tid: int
    registers: bytes
    floating: bytes
    extended: bytes
    mask: bytes
    stat: bytes
    status: bytes


def _fxsave(extended: bytes) -> bytes:
    """Return the floating point registers from the extended ones; empty if there are none."""
    if not extended:
        return b""
    return extended[:_FXSAVE_OWN_BYTES] + bytes(_FXSAVE_BYTES - _FXSAVE_OWN_BYTES)


@dataclass(frozen=True)
class ThreadStates:
    """The states of threads, unparsed: they are parsed when the target runs again."""

    table: list[list[int]]
    data: bytes

    def by_process(self) -> dict[int, list[ThreadState]]:
        """Return the threads of each process, in the order in which they were stopped."""
        found: dict[int, list[ThreadState]] = {}
        at = 0
        for pid, tid, *sizes in self.table:
            ends = list(itertools.accumulate(sizes, initial=at))
            parts = [self.data[a:b] for a, b in itertools.pairwise(ends)]
            general, floating, extended, mask, stat, status = parts
            floating = floating or _fxsave(extended)
            thread = ThreadState(pid, tid, general, floating, extended, mask, stat, status)
            found.setdefault(pid, []).append(thread)
            at = ends[-1]
        return found


class Freezer:
    """A freezer process, started at once so that no stop waits for it.

    Attributes:
        frozen: Whether the freezer keeps a target stopped.
    """

    def __init__(self) -> None:
        self.frozen = False
        self._states_pending = False  # requested, and the answer was not read yet
        self._start()

    def _start(self) -> None:
        local, peer = socket.socketpair()
        with contextlib.suppress(
            OSError
        ):  # otherwise the freezer occasionally waits for the reader
            peer.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
        self._process = start_helper("freezer", peer)
        self._ended = False
        self._link = local
        self._in = local.makefile("rb")

    def _ask(self, patience_s: float, /, **request: object) -> dict[str, object]:
        if self._states_pending:
            self.states()
        self._send(patience_s, request)
        return self._answer()

    def _send(self, patience_s: float, request: dict[str, object]) -> None:
        self._link.settimeout(patience_s + _ANSWER_S)
        try:
            self._link.sendall(json.dumps(request).encode() + b"\n")
        except OSError as e:
            self._failed(e)

    def _failed(self, error: OSError) -> NoReturn:
        self.close()
        raise FreezeError(
            f"the freezer process does not answer: {error}; the target keeps running"
        ) from None

    def _answer(self) -> dict[str, object]:
        try:
            line = self._in.readline()
        except OSError as e:
            self._failed(e)
        if not line:
            self.close()
            raise FreezeError("the freezer process ended; the target keeps running")
        answer: dict[str, object] = json.loads(line)
        self._ended = bool(answer["ends"])
        if not answer["ok"]:
            self.frozen = False
            raise FreezeError(str(answer["why"]), float(str(answer["held_s"])))
        return answer

    def stop(self, pids: list[int], limit_s: float, wait_s: float) -> int:
        """Stop all threads of processes; return the number of threads stopped now, in all.

        Args:
            pids: The processes.
            limit_s: After this time the processes resume by themselves.
            wait_s: How long to wait until they have stopped.

        Raises:
            FreezeError: They cannot be stopped; all keep running.
        """
        self._renew()
        answer = self._ask(wait_s, op="stop", pids=pids, limit_s=limit_s, wait_s=wait_s)
        self.frozen = True
        return int(str(answer["threads"]))

    def request_states(self) -> None:
        """Request the states of all stopped threads, to be read meanwhile. Raises: FreezeError."""
        self._send(0, {"op": "state"})
        self._states_pending = True

    def states(self) -> ThreadStates:
        """Return the thread states requested by request_states().

        Raises:
            FreezeError: A thread cannot be examined; all have resumed.
        """
        self._states_pending = False
        table = self._answer()["threads"]
        assert isinstance(table, list)
        total = sum(sum(row[2:]) for row in table)
        try:
            data = self._in.read(total)
        except OSError as e:
            self._failed(e)
        if len(data) < total:
            self.close()
            raise FreezeError("the freezer process ended; the target keeps running")
        return ThreadStates(table, data)

    def stop_machine(self, path: str, limit_s: float, wait_s: float) -> None:
        """Stop a QEMU's guest through its QMP socket; it resumes with QEMU's threads.

        Call it before those threads are stopped. Raises: FreezeError.
        """
        self._renew()
        self._ask(wait_s, op="machine", path=path, limit_s=limit_s, wait_s=wait_s)
        self.frozen = True

    def hold_networks(self, pids: list[int], *, trial: bool = False) -> None:
        """Drop what the network namespaces of processes send while they are stopped.

        With trial, only check that this is possible.

        Raises:
            FreezeError: The kernel refused; all have resumed.
        """
        self._ask(0, op="network", pids=pids, trial=trial)

    def _renew(self) -> None:
        if self._ended or self._process.poll() is not None:  # to release a thread for good
            self.close()
            self._start()

    def extend(self, limit_s: float) -> None:
        """Restart the time limit of the freeze.

        Raises:
            FreezeError: They have resumed already.
        """
        self._ask(0, op="more", limit_s=limit_s)

    def release(self, *, stop: bool = False) -> float:
        """Resume the threads, or with stop leave them stopped by SIGSTOP; return the downtime in seconds.

        Raises:
            FreezeError: They resumed earlier: what was read is not of one point in time.
        """
        answer = self._ask(0, op="release", stop=stop)
        self.frozen = False
        return float(str(answer["held_s"]))

    def close(self) -> None:
        """Resume all, and end the freezer."""
        self.frozen = self._states_pending = False
        self._in.close()
        self._link.close()
        reap(self._process)
