"""The process that holds a target still: every thread stopped by ptrace, its registers read.

A process of its own, with the bare library only, so that the target runs on whatever happens to the
collector: it lets go when the collector's end of the socket closes, when the time it was given is
over (the collector may hang), and, as the kernel does it for every tracer, when it dies itself. It
changes nothing in the target.

Protocol, over a stream socket (argv[1] is its descriptor): a line of JSON each way.
  {"op": "stop", "pids": [P, ...], "limit_s": T, "wait_s": T}
      -> {"ok": true, "threads": n}, how many are held now
  {"op": "state"}
      -> {"ok": true, "threads": [[P, TID, n, n, n, n, n, n], ...]} of all that is held, and after the line
         of each thread n bytes of general, floating point and extended registers (floating point ones only
         where there are no extended ones, which begin with them), of its signal mask, its stat and, of the
         first one of a process, its status
  {"op": "machine", "path": SOCKET, "limit_s": T, "wait_s": T}
      -> {"ok": true}; a QEMU's guest is stopped, before its threads are
  {"op": "network", "pids": [P, ...], "trial": false}
      -> {"ok": true}; what their network namespaces send is held, too; with trial it only tries
  {"op": "more", "limit_s": T}     -> {"ok": true}, held for so long from now on
  {"op": "release", "stop": false} -> {"ok": true, "held_s": T}, with stop under SIGSTOP
Errors: {"ok": false, "errno": N, "why": text}; then the target runs.
"""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import time

from . import network_lock, qmp, tracee
from .injector import architecture
from .tracee import Tracee, TraceeError

NT_PRFPREG, NT_X86_XSTATE = 2, 0x202
_SPACE = ctypes.create_string_buffer(1 << 16)
_SPACE_AT = ctypes.addressof(_SPACE)
_PLACE = struct.Struct("PN")  # struct iovec
_VECTOR = ctypes.create_string_buffer(_PLACE.size)
_VECTOR_AT = ctypes.addressof(_VECTOR)


def threads_of(pid: int) -> list[int]:
    """Thread numbers, the first one first; also of threads that have ended and are not reaped."""
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")), key=lambda t: (t != pid, t))
    except OSError:
        return []


def lives(tid: int) -> bool:
    """Whether a thread has not ended."""
    try:
        with open(f"/proc/{tid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def register_set(tid: int, kind: int) -> bytes:
    """One set of a stopped thread's registers; nothing where there is no such set. Kept bare, as contents()."""
    _PLACE.pack_into(_VECTOR, 0, _SPACE_AT, len(_SPACE))
    try:
        tracee.ptrace(tracee.GETREGSET, tid, kind, _VECTOR_AT)
    except OSError:
        return b""
    return ctypes.string_at(_SPACE_AT, _PLACE.unpack_from(_VECTOR)[1])


def contents(path: str) -> bytes:
    """Of a file of /proc. Kept bare: there is one of each thread, and they stand still."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


class FrozenThreads:
    """What is held now. held: (process, thread), in the order in which they were stopped."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, Tracee]] = {}
        self.holds = False
        self.machine: qmp.StoppedGuest | None = None
        self.networks = network_lock.NetworkLocks()
        self.since = 0.0
        self.until = 0.0
        self.held_s = 0.0
        self.ended: set[int] = set()  # threads that cannot be stopped any more
        self.done_for = False  # a thread may stop later on: only this process's end frees it

    def begin(self, limit_s: float) -> None:
        """Holds something from now on, if it did not before."""
        if not self.holds:
            self.held_s, self.since, self.ended = 0.0, time.monotonic(), set()
        self.holds = True
        self.until = self.since + limit_s

    def stop(self, pids: list[int], wait_s: float) -> None:
        """Stops all threads, also those that are made meanwhile."""
        begun = time.monotonic()
        deadline = begun + wait_s
        try:
            while True:
                seized = []
                for pid in pids:
                    for tid in threads_of(pid):
                        if tid not in self.held and tid not in self.ended:
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
        """Asks one thread to stop."""
        try:
            thread = Tracee(tid, architecture(), 0)
        except OSError as e:
            if e.errno == errno.ESRCH or not lives(tid):
                self.ended.add(tid)
                return None
            with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as status:
                tracer = [line.split()[1] for line in status if line.startswith("TracerPid:")]
            by = f": process {tracer[0]} is debugging it" if tracer and tracer[0] != "0" else ""
            raise TraceeError(e.errno or 0, f"thread {tid} cannot be stopped{by}") from None
        self.held[tid] = pid, thread
        tracee.ptrace(tracee.INTERRUPT, tid)
        return thread

    def wait(self, thread: Tracee, deadline: float) -> None:
        """Waits for its stop."""
        try:
            thread.wait_for_stop(max(deadline - time.monotonic(), 0.001))
        except TraceeError as e:
            if e.code != errno.ESRCH:
                raise TraceeError(e.code, f"thread {thread.tid} does not come to a stop") from None
            self.held.pop(thread.tid)
            self.ended.add(thread.tid)

    def state(self) -> "tuple[list[list[int]], bytes]":
        table: list[list[int]] = []
        parts = []
        seen = set()
        for tid, (pid, thread) in self.held.items():
            general, extended = (
                register_set(tid, tracee.NT_PRSTATUS),
                register_set(tid, NT_X86_XSTATE),
            )
            floating = b"" if extended else register_set(tid, NT_PRFPREG)
            found = [general, floating, extended]
            place = f"/proc/{pid}/task/{tid}"
            # the kernel takes longest for status
            status = b"" if pid in seen else contents(f"{place}/status")
            seen.add(pid)
            found += [thread.mask(), contents(f"{place}/stat"), status]
            table.append([pid, tid, *map(len, found)])
            parts += found
        return table, b"".join(parts)

    def release(self, stay: bool) -> None:
        """Lets all go on; with stay they stop at once, as by a user's SIGSTOP."""
        if stay and self.machine is None:  # else it is the guest that stays stopped
            for pid in {pid for pid, _ in self.held.values()}:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except OSError:
                    pass
        self.networks.let_go()  # before anyone sends
        late = []
        for _, thread in self.held.values():
            if thread.stopped:
                thread.release()
            else:
                late.append(thread)
        if self.machine is not None:
            if not stay:
                self.machine.go()
            self.machine = None
        if self.holds:
            self.held_s = time.monotonic() - self.since
        self.held, self.holds = {}, False
        self.networks.close()
        for thread in late:
            # Asked to stop, and not there yet: it would stop for good later on. Its stop is waited
            # for, and if that takes too long it is the end of this process that lets it go.
            try:
                thread.wait_for_stop(0.05)
                thread.release()
            except (TraceeError, OSError):
                self.done_for = True

    def hold_networks(self, request: "dict[str, object]") -> "tuple[dict[str, object], bytes]":
        trial = bool(request["trial"])
        if not trial and not self.holds:
            raise TraceeError(errno.ETIMEDOUT, f"its time was over after {self.held_s:.3f} s")
        pids = [int(str(pid)) for pid in list(request["pids"])]  # type: ignore[call-overload]
        try:
            self.networks.hold(pids, asleep=trial)
        except OSError as e:
            raise TraceeError(e.errno or errno.EIO, e.strerror or str(e)) from None
        if trial:
            self.networks.close()
        return {"ok": True}, b""

    def answer(self, request: "dict[str, object]") -> "tuple[dict[str, object], bytes]":
        operation = request["op"]
        if operation == "stop":
            self.begin(float(str(request["limit_s"])))
            pids = [int(str(pid)) for pid in list(request["pids"])]  # type: ignore[call-overload]
            self.stop(pids, float(str(request["wait_s"])))
            return {"ok": True, "threads": len(self.held)}, b""
        if operation == "machine":
            self.begin(float(str(request["limit_s"])))
            self.machine = qmp.StoppedGuest(str(request["path"]), float(str(request["wait_s"])))
            return {"ok": True}, b""
        if operation == "network":
            return self.hold_networks(request)
        if not self.holds:
            raise TraceeError(errno.ETIMEDOUT, f"its time was over after {self.held_s:.3f} s")
        if operation == "state":
            table, blob = self.state()
            return {"ok": True, "threads": table}, blob
        if operation == "more":
            self.until = time.monotonic() + float(str(request["limit_s"]))
            return {"ok": True}, b""
        if operation == "release":
            self.release(bool(request["stop"]))
            return {"ok": True, "held_s": self.held_s}, b""
        return {"ok": False, "errno": errno.EINVAL, "why": f"no such request: {operation}"}, b""


def serve(link: socket.socket) -> None:
    """Until the collector is gone; whatever happens, all are let go of, a QEMU's guest too."""
    holder = FrozenThreads()
    try:
        serve_with(holder, link)
    except OSError:
        pass  # it was killed with an answer unread, or hangs
    finally:
        holder.release(stay=False)


def serve_with(holder: FrozenThreads, link: socket.socket) -> None:
    """Errors: OSError when the collector does not listen any more."""
    data = b""
    while True:
        left = max(holder.until - time.monotonic(), 0) if holder.holds else None
        if not select.select([link], [], [], left)[0]:
            holder.release(stay=False)
            continue
        part = link.recv(65536)
        if not part:
            return
        data += part
        while b"\n" in data:
            line, _, data = data.partition(b"\n")
            blob = b""
            try:
                answer, blob = holder.answer(json.loads(line))
            except (TraceeError, OSError) as e:
                holder.release(stay=False)
                code = getattr(e, "code", None) or getattr(e, "errno", None) or errno.EIO
                answer = {"ok": False, "errno": code, "why": str(e)}
            except Exception as e:  # whatever it is: an answer, or the collector would wait for one
                answer = {"ok": False, "errno": errno.EIO, "why": f"{type(e).__name__}: {e}"}
            # An answer that nobody reads does not keep anybody held.
            link.settimeout(max(holder.until - time.monotonic(), 0.001) if holder.holds else None)
            link.sendall(json.dumps(answer).encode() + b"\n" + blob)
            link.settimeout(None)
            if holder.done_for:
                return


def main() -> None:
    tracee.outlive_others()
    serve(socket.socket(fileno=int(sys.argv[1])))
