"""The process that freezes a target: every thread stopped by ptrace, its registers read.

It is a separate process, with the bare library only, so that the target resumes whatever happens
to the collector: it is released when the collector's end of the socket closes, when the time limit is
over (the collector may hang), and, as the kernel does for every tracer, when the freezer itself dies.
The freezer changes nothing in the target, except that a call that the stop ended with EINTR begins again.

Protocol, over a stream socket (argv[1] is its descriptor): a line of JSON each way.
  {"op": "stop", "pids": [P, ...], "limit_s": T, "wait_s": T}
      -> {"ok": true, "threads": n}, the number of threads stopped now
  {"op": "state"}
      -> {"ok": true, "threads": [[P, TID, n, n, n, n, n, n], ...]} of all stopped threads, and after the
         line for each thread n bytes of general, floating point and extended registers (floating point
         ones only where there are no extended ones, which start with them), of its signal mask, its stat
         and, for the first one of a process, its status
  {"op": "machine", "path": SOCKET, "limit_s": T, "wait_s": T}
      -> {"ok": true}; a QEMU's guest is stopped, before its threads are
  {"op": "network", "pids": [P, ...], "trial": false}
      -> {"ok": true}; what their network namespaces send is dropped, too; with trial this is only checked
  {"op": "more", "limit_s": T}     -> {"ok": true}, the time limit is restarted
  {"op": "release", "stop": false} -> {"ok": true, "held_s": T}, with stop under SIGSTOP
On failure: {"ok": false, "errno": N, "why": text, "held_s": T}; the target then runs, after it stood still for T.
With "ends": true in an answer this process ends after it.
"""

import ctypes
import errno
import json
import math
import os
import select
import signal
import socket
import struct
import sys
import time

from . import network_lock, procfs, qmp, tracee
from .arch import architecture
from .errors import TraceeError
from .tracee import Tracee

NT_PRFPREG, NT_X86_XSTATE = 2, 0x202
_BUFFER = ctypes.create_string_buffer(1 << 16)
_BUFFER_AT = ctypes.addressof(_BUFFER)
_IOVEC = struct.Struct("PN")  # struct iovec
_VECTOR = ctypes.create_string_buffer(_IOVEC.size)
_VECTOR_AT = ctypes.addressof(_VECTOR)


def threads_of(pid: int) -> list[int]:
    """Return the thread IDs of a process, the first thread first; none once it is gone.

    Threads that have ended and are not reaped are included.
    """
    try:
        return sorted(procfs.threads_of(pid), key=lambda tid: (tid != pid, tid))
    except OSError:
        return []


def register_set(tid: int, kind: int) -> bytes:
    """Read one register set of a stopped thread; empty if there is no such set.

    Kept bare: all threads are stopped meanwhile.
    """
    _IOVEC.pack_into(_VECTOR, 0, _BUFFER_AT, len(_BUFFER))
    try:
        tracee.ptrace(tracee.GETREGSET, tid, kind, _VECTOR_AT)
    except OSError:
        return b""
    return ctypes.string_at(_BUFFER_AT, _IOVEC.unpack_from(_VECTOR)[1])


class FrozenThreads:
    """The threads stopped now, of one or several processes.

    Attributes:
        threads: TID -> (process, thread), in the order in which they were stopped.
        frozen: Whether anything is stopped.
        machine: A QEMU guest that is stopped, too.
        networks: The network namespaces whose output is dropped.
        since: When the freeze started (time.monotonic()).
        until: When it ends by itself.
        frozen_s: How long the last freeze lasted.
        ended: Threads that ended before they could be stopped.
        must_exit: Whether a thread may stop later on, or has ended, which only the end of this process releases.
    """

    def __init__(self) -> None:
        self.threads: dict[int, tuple[int, Tracee]] = {}
        self.frozen = False
        self.machine: qmp.StoppedGuest | None = None
        self.networks = network_lock.NetworkLocks()
        self.since = 0.0
        self.until = 0.0
        self.frozen_s = 0.0
        self.ended: set[int] = set()
        self.must_exit = False

    def start(self, limit_s: float) -> None:
        """Start a freeze, if there is none, and set its time limit."""
        if not self.frozen:
            self.frozen_s, self.since, self.ended = 0.0, time.monotonic(), set()
        self.frozen = True
        self.until = self.since + limit_s

    def stop(self, pids: list[int], wait_s: float) -> None:
        """Stop all threads of processes, including those that are created meanwhile.

        Raises:
            TraceeError: A thread cannot be stopped, or not within wait_s; all are released then.
        """
        deadline = min(time.monotonic() + wait_s, self.until)
        try:
            while True:
                seized = []
                for pid in pids:
                    for tid in threads_of(pid):
                        if tid not in self.threads and tid not in self.ended:
                            seized.append(self.seize(pid, tid))
                new = [thread for thread in seized if thread is not None]
                if not new:
                    return
                for thread in new:
                    self.wait(thread, deadline)
        except BaseException:
            self.release(stay=False)
            raise

    def seize(self, pid: int, tid: int) -> "Tracee | None":
        """Seize a thread and request its stop; return None if it ended."""
        try:
            thread = Tracee(tid, architecture(), 0)
        except OSError as e:
            if e.errno == errno.ESRCH or not procfs.lives(tid):
                self.ended.add(tid)
                return None
            tracer = procfs.status_field(tid, "TracerPid")
            by = f": process {tracer} is debugging it" if tracer not in ("", "0") else ""
            raise TraceeError(e.errno or 0, f"thread {tid} cannot be stopped{by}") from None
        self.threads[tid] = pid, thread
        tracee.ptrace(tracee.INTERRUPT, tid)
        return thread

    def wait(self, thread: Tracee, deadline: float) -> None:
        """Wait until a thread has stopped. Raises: TraceeError."""
        try:
            thread.wait_for_stop(max(deadline - time.monotonic(), 0.001))
            thread.begin_call_again()
        except TraceeError as e:
            if e.code != errno.ESRCH:
                raise TraceeError(e.code, f"thread {thread.tid} does not stop") from None
            self.threads.pop(thread.tid)
            self.ended.add(thread.tid)

    def state(self) -> "tuple[list[list[int]], bytes]":
        """Return the table of the answer to "state", and the data behind it. Raises: OSError."""
        table: list[list[int]] = []
        parts = []
        known = set()
        for tid, (pid, thread) in self.threads.items():
            self.require_time()
            general, extended = (
                register_set(tid, tracee.NT_PRSTATUS),
                register_set(tid, NT_X86_XSTATE),
            )
            floating = b"" if extended else register_set(tid, NT_PRFPREG)
            found = [general, floating, extended]
            directory = f"/proc/{pid}/task/{tid}"
            # the file that takes the kernel longest
            status = b"" if pid in known else procfs.read(f"{directory}/status")
            known.add(pid)
            found += [thread.mask(), procfs.read(f"{directory}/stat"), status]
            table.append([pid, tid, *map(len, found)])
            parts += found
        return table, b"".join(parts)

    def release(self, stay: bool) -> None:
        """Resume all threads; with stay they stop again at once, as by a user's SIGSTOP."""
        if stay and self.machine is None:  # else the guest is what stays stopped
            for pid in {pid for pid, _ in self.threads.values()}:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except OSError:
                    pass
        self.networks.release()  # before anyone sends
        late = []
        for _, thread in self.threads.values():
            if thread.stopped:
                self.must_exit |= not thread.release()
            else:
                late.append(thread)
        if self.machine is not None:
            if not stay:
                self.machine.resume()
            self.machine = None
        if self.frozen:
            self.frozen_s = time.monotonic() - self.since
        self.threads, self.frozen = {}, False
        self.networks.close()
        for thread in late:
            # Its stop was requested and has not happened: it would stop for good later on. Wait for
            # it; if that takes too long, the end of this process releases it.
            try:
                thread.wait_for_stop(0.05)
                self.must_exit |= not thread.release()
            except (TraceeError, OSError):
                self.must_exit = True

    def require_frozen(self) -> None:
        """Check that the time limit has not ended the freeze. Raises: TraceeError."""
        if not self.frozen:
            why = f"time limit exceeded: resumed after {self.frozen_s:.3f} s"
            raise TraceeError(errno.ETIMEDOUT, why)

    def require_time(self) -> None:
        """End the freeze if its time is over: work of this process must not prolong it. Raises: TraceeError."""
        if time.monotonic() > self.until:
            self.release(stay=False)
            self.require_frozen()

    def wait_s(self, request: "dict[str, object]") -> float:
        """Return for how long a request may wait: never longer than the freeze lasts."""
        return max(min(float(str(request["wait_s"])), self.until - time.monotonic()), 0.001)

    def hold_networks(self, request: "dict[str, object]") -> "tuple[dict[str, object], bytes]":
        """Carry out the request "network". Raises: TraceeError."""
        trial = bool(request["trial"])
        if not trial:
            self.require_frozen()
        pids = [int(str(pid)) for pid in list(request["pids"])]  # type: ignore[call-overload]
        try:
            self.networks.hold(pids, dormant=trial)
        except OSError as e:
            raise TraceeError(e.errno or errno.EIO, e.strerror or str(e)) from None
        if trial:
            self.networks.close()
        return {"ok": True}, b""

    def answer(self, request: "dict[str, object]") -> "tuple[dict[str, object], bytes]":
        """Carry out a request; return the answer, and the data behind it. Raises: TraceeError, OSError."""
        operation = request["op"]
        if operation == "stop":
            self.start(float(str(request["limit_s"])))
            pids = [int(str(pid)) for pid in list(request["pids"])]  # type: ignore[call-overload]
            self.stop(pids, self.wait_s(request))
            return {"ok": True, "threads": len(self.threads)}, b""
        if operation == "machine":
            self.start(float(str(request["limit_s"])))
            self.machine = qmp.StoppedGuest(str(request["path"]), self.wait_s(request))
            return {"ok": True}, b""
        if operation == "network":
            return self.hold_networks(request)
        self.require_frozen()
        if operation == "state":
            table, blob = self.state()
            return {"ok": True, "threads": table}, blob
        if operation == "more":
            self.until = time.monotonic() + float(str(request["limit_s"]))
            return {"ok": True}, b""
        if operation == "release":
            self.release(bool(request["stop"]))
            return {"ok": True, "held_s": self.frozen_s}, b""
        return {"ok": False, "errno": errno.EINVAL, "why": f"unknown request: {operation}"}, b""


def serve(link: socket.socket) -> None:
    """Serve the collector until it is gone; whatever happens, all threads and the guest are released."""
    frozen = FrozenThreads()
    try:
        serve_with(frozen, link)
    except OSError:
        pass  # the collector was killed with an answer unread, or hangs
    finally:
        frozen.release(stay=False)


def serve_with(frozen: FrozenThreads, link: socket.socket) -> None:
    """Serve the collector until it closes its end. Raises: OSError when it stops reading."""
    data = b""
    waiting = select.poll()
    waiting.register(link, select.POLLIN)
    while True:
        left = max(frozen.until - time.monotonic(), 0) if frozen.frozen else None
        if not waiting.poll(None if left is None else math.ceil(left * 1000)):
            frozen.release(stay=False)
            continue
        part = link.recv(65536)
        if not part:
            return
        data += part
        while b"\n" in data:
            line, _, data = data.partition(b"\n")
            blob = b""
            try:
                answer, blob = frozen.answer(json.loads(line))
            except (TraceeError, OSError) as e:
                frozen.release(stay=False)
                code = getattr(e, "code", None) or getattr(e, "errno", None) or errno.EIO
                answer = {"ok": False, "errno": code, "why": str(e), "held_s": frozen.frozen_s}
            except Exception as e:  # any: without an answer the collector would wait
                why = f"{type(e).__name__}: {e}"
                answer = {"ok": False, "errno": errno.EIO, "why": why, "held_s": frozen.frozen_s}
            # An answer that nobody reads must not keep anyone frozen.
            link.settimeout(max(frozen.until - time.monotonic(), 0.001) if frozen.frozen else None)
            answer["ends"] = frozen.must_exit
            link.sendall(json.dumps(answer).encode() + b"\n" + blob)
            link.settimeout(None)
            if frozen.must_exit:
                return


def main() -> None:
    """Run the freezer; argv[1] is its end of the socket."""
    tracee.outlive_others()
    try:
        # It has little to do, and all that it does late prolongs a stop.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass
    serve(socket.socket(fileno=int(sys.argv[1])))
