"""The collector's side of the holder: the process beside it that holds a target still."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
from dataclasses import dataclass
from typing import NoReturn

from redirty.collector.errors import RedirtyError
from redirty.collector.ptrace.spawn import reap, start_helper

_SPARE_S = 5.0  # for an answer that should come at once
_SO_SNDBUFFORCE = 32
_ANSWER_BYTES = 16 << 20  # the states of some 4,000 threads: it need not wait for us to read them


# NT_X86_XSTATE begins with what NT_PRFPREG is, but for the bytes that say what else is in it.
# arch/x86/include/asm/fpu/types.h: fxregs_state, sw_reserved
_FXSAVE_BYTES, _FXSAVE_OWN_BYTES = 512, 464


class FreezeError(RedirtyError):
    """The target could not be held still, or not for so long; it runs on."""


@dataclass(frozen=True)
class ThreadState:
    """A stopped thread's registers, as ptrace gives them; floating, extended: empty where there are none.
    mask: of blocked signals. stat, status: its files in /proc, status of the first thread alone."""

    pid: int
    tid: int
    registers: bytes
    floating: bytes
    extended: bytes
    mask: bytes
    stat: bytes
    status: bytes


def _fxsave(extended: bytes) -> bytes:
    """The floating point registers, of extended ones; empty where there are none."""
    if not extended:
        return b""
    return extended[:_FXSAVE_OWN_BYTES] + bytes(_FXSAVE_BYTES - _FXSAVE_OWN_BYTES)


@dataclass(frozen=True)
class ThreadStates:
    """The states of threads as they came: taken apart when the target runs again."""

    table: list[list[int]]
    data: bytes

    def by_process(self) -> dict[int, list[ThreadState]]:
        """The threads of each process, in the order in which they were stopped."""
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
    """Started at once, so that no quiesce waits for it. holds: whether a target stands still by it."""

    def __init__(self) -> None:
        self.holds = False
        self._asked = False  # for the threads' states, whose answer was not read yet
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with contextlib.suppress(OSError):  # else it waits for the reader now and then
            theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ANSWER_BYTES)
        self._process = start_helper("freezer", theirs)
        self._link = ours
        self._in = ours.makefile("rb")

    def _ask(self, patience_s: float, /, **request: object) -> dict[str, object]:
        if self._asked:
            self.states()
        self._send(patience_s, request)
        return self._answer()

    def _send(self, patience_s: float, request: dict[str, object]) -> None:
        self._link.settimeout(patience_s + _SPARE_S)
        try:
            self._link.sendall(json.dumps(request).encode() + b"\n")
        except OSError as e:
            self._failed(e)

    def _failed(self, error: OSError) -> NoReturn:
        self.close()
        raise FreezeError(f"the process that holds targets does not answer: {error}") from None

    def _answer(self) -> dict[str, object]:
        try:
            line = self._in.readline()
        except OSError as e:
            self._failed(e)
        if not line:
            self.close()
            raise FreezeError("the process that holds targets ended, and the target runs on")
        answer: dict[str, object] = json.loads(line)
        if not answer["ok"]:
            self.holds = False
            raise FreezeError(str(answer["why"]))
        return answer

    def stop(self, pids: list[int], limit_s: float, wait_s: float) -> int:
        """Stops all threads of processes: how many are held now, in all. After limit_s they run
        on by themselves; wait_s: how long to wait for them to come to a stop.

        Errors: FreezeError.
        """
        self._renew()
        answer = self._ask(wait_s, op="stop", pids=pids, limit_s=limit_s, wait_s=wait_s)
        self.holds = True
        return int(str(answer["threads"]))

    def ask_states(self) -> None:
        """Has the states of all threads that are held be read, beside what is done meanwhile. Errors: FreezeError."""
        self._send(0, {"op": "state"})
        self._asked = True

    def states(self) -> ThreadStates:
        """Those. Errors: FreezeError when one cannot be looked at; all run then."""
        self._asked = False
        table = self._answer()["threads"]
        assert isinstance(table, list)
        total = sum(sum(row[2:]) for row in table)
        try:
            data = self._in.read(total)
        except OSError as e:
            self._failed(e)
        if len(data) < total:
            self.close()
            raise FreezeError("the process that holds targets ended, and the target runs on")
        return ThreadStates(table, data)

    def stop_machine(self, path: str, limit_s: float, wait_s: float) -> None:
        """Stops a QEMU's guest through its QMP socket, before its threads are stopped; it goes on when
        they do. Errors: FreezeError."""
        self._renew()
        self._ask(wait_s, op="machine", path=path, limit_s=limit_s, wait_s=wait_s)
        self.holds = True

    def hold_networks(self, pids: list[int], *, trial: bool = False) -> None:
        """Holds what the network namespaces of processes send, for as long as they stand still; with
        trial it is only tried. Errors: FreezeError, with the kernel's reason; they run then."""
        self._ask(0, op="network", pids=pids, trial=trial)

    def _renew(self) -> None:
        if self._process.poll() is not None:  # it ended to let go of a thread that never stopped
            self.close()
            self._start()

    def more(self, limit_s: float) -> None:
        """Holds them for so long from now on. Errors: FreezeError when they run already."""
        self._ask(0, op="more", limit_s=limit_s)

    def release(self, *, stop: bool = False) -> float:
        """Lets them run, or leaves them as SIGSTOP does. Returns for how long they stood still.

        Errors: FreezeError when they ran before that: what was read is not of one moment.
        """
        answer = self._ask(0, op="release", stop=stop)
        self.holds = False
        return float(str(answer["held_s"]))

    def close(self) -> None:
        """Lets all go."""
        self.holds = self._asked = False
        self._in.close()
        self._link.close()
        reap(self._process)
