"""Fork and exec of processes, from the kernel's proc connector.

The BPF programs trace children by themselves from their first instruction; from these events
the collector learns early what they are, including those that live for less than a round. So an event
that is lost costs a name, nothing else.

Sources: Documentation/driver-api/connector.rst, include/uapi/linux/cn_proc.h, filter.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass

from redirty.collector.errors import RedirtyError, why

_FORK, _EXEC = 0x1, 0x2
_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC = 11, 1, 1
_LISTEN, _IGNORE = 1, 2  # enum proc_cn_mcast_op
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_MESSAGE = struct.Struct("=IIIIHH")  # struct cn_msg
_WHAT = _HEADER.size + _MESSAGE.size  # of struct proc_event, whose data follow 16 bytes later
_DATA = _WHAT + 16
_EVENT = struct.Struct(
    "=4I"
)  # parent and child of a fork, process of an exec: each thread and group
_BUFFER_BYTES = 8 << 20  # some 10,000 events, should this process not run for a while
_MOST_WAITING = 1 << 18


@dataclass(frozen=True)
class ProcessEvent:
    """An event. kind: fork or exec; parent: of a fork, else 0."""

    kind: str
    pid: int
    parent: int = 0


def _filter() -> bytes:
    """Return a program of classic BPF that keeps only execs, and forks of processes, not threads.

    The kernel runs it before it takes room in the buffer, so everything else costs none.
    """
    load, to_x, equal, equal_x, keep = 0x20, 0x07, 0x15, 0x1D, 0x06
    fork, exec_ = socket.htonl(_FORK), socket.htonl(_EXEC)  # words are loaded as on the network
    program = [
        (load, 0, 0, _WHAT),
        (equal, 5, 0, exec_),
        (equal, 0, 5, fork),
        (load, 0, 0, _DATA + 8),  # child: thread
        (to_x, 0, 0, 0),
        (load, 0, 0, _DATA + 12),  # child: group
        (equal_x, 0, 1, 0),
        (keep, 0, 0, 0xFFFFFFFF),
        (keep, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *one) for one in program)


class ProcessEvents:
    """A listener for events of all processes; a thread of its own empties the socket from the first moment.

    Raises:
        RedirtyError: The kernel sends none (not root, no CONFIG_PROC_EVENTS).
    """

    def __init__(self) -> None:
        self._waiting: deque[ProcessEvent] = deque(maxlen=_MOST_WAITING)
        self._lost = False
        self._end_read, self._end_write = os.pipe2(os.O_CLOEXEC)
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR)
        except OSError as e:
            self._close_pipe()
            raise _refused(e) from None
        try:
            self._listen()
        except OSError as e:
            self._socket.close()
            self._close_pipe()
            raise _refused(e) from None
        self._thread = threading.Thread(target=self._run, name="process events", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        import ctypes

        program = ctypes.create_string_buffer(_filter())
        count = (len(program) - 1) // 8
        pointer = struct.pack("@HP", count, ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.setblocking(False)
        self._socket.bind((0, _CN_IDX_PROC))
        self._control(_LISTEN)

    def _control(self, operation: int) -> None:
        body = struct.pack("=I", operation)
        message = _MESSAGE.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(body), 0) + body
        length = _HEADER.size + len(message)
        self._socket.send(_HEADER.pack(length, 3, 0, 0, os.getpid()) + message)  # NLMSG_DONE

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._end_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._end_read in ready:
                return
            self._read()

    def _read(self) -> None:
        """Take what the socket has."""
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno == errno.ENOBUFS:  # events were dropped; those that follow are read
                    self._lost = True
                    continue
                return
            event = _event_of(data)
            if event is not None:
                self._lost |= len(self._waiting) == _MOST_WAITING
                self._waiting.append(event)

    def take(self) -> list[ProcessEvent]:
        """Return the events since the last call, without waiting."""
        found = []
        while self._waiting:
            found.append(self._waiting.popleft())
        return found

    def take_lost(self) -> bool:
        """Return whether events were lost since the last call: processes that started may be unknown."""
        lost, self._lost = self._lost, False
        return lost

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._end_write < 0:
            return
        os.write(self._end_write, b"e")
        self._thread.join()
        with contextlib.suppress(OSError):
            self._control(_IGNORE)
        self._socket.close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._end_read)
        os.close(self._end_write)
        self._end_write = -1


def _refused(error: OSError) -> RedirtyError:
    return RedirtyError(f"no process events from the kernel (CONFIG_PROC_EVENTS): {why(error)}")


def _event_of(data: bytes) -> ProcessEvent | None:
    """Return the event of a process in a message; None for those of threads, and other messages."""
    if len(data) < _DATA + _EVENT.size:
        return None
    (what,) = struct.unpack_from("=I", data, _WHAT)
    _, second, third, fourth = _EVENT.unpack_from(data, _DATA)
    if what == _FORK and third == fourth:
        return ProcessEvent("fork", fourth, second)
    if what == _EXEC:
        return ProcessEvent("exec", second)
    return None
