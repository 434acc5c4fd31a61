"""A connection whose other end has not proved yet who it is, or has not said yet what it wants."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
from dataclasses import dataclass
from enum import IntEnum

from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.peer import is_loopback
from redirty.collector.mirror.transport.protocol import FrameError

_TLS_HANDSHAKE = 0x16  # the first byte of a TLS connection (RFC 8446, 5.1)
_RECORD_HEAD = 5
_MAX_FIRST_RECORD = 4096
_NEEDS_CODE = "it needs its code: give the sender --code-file with what redirty receive shows"


@dataclass(frozen=True)
class Arrival:
    """A connection of a sender that has proved who it is.

    Attributes:
        connection: the socket.
        session: the mirror that it is about.
        hello: its greeting, which is read already.
    """

    connection: socket.socket
    session: str
    hello: bytes

    def refuse(self, reason: str) -> None:
        """Report a reason, and close the connection."""
        refuse(self.connection, reason)


class Progress(IntEnum):
    """Say how far a candidate has come."""

    SILENT = 0
    TLS_BEGUN = 1
    HINTED = 2  # it seems to know the code
    PROVED = 3


def refuse(connection: socket.socket, reason: str) -> None:
    """Tell the other end a reason if that is possible without waiting, and close the connection."""
    text = reason.encode(errors="replace")
    with contextlib.suppress(OSError, ValueError):
        connection.setblocking(False)
        connection.send(protocol.head(protocol.ERROR, payload=len(text)) + text)
    with contextlib.suppress(OSError):
        connection.close()


def neighbourhood(address: str) -> str:
    """Return what one stranger may have many addresses of: a machine, or an IPv6 network."""
    if is_loopback(address):
        return "loopback"
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)


class Candidate:
    """A connection that is read without ever waiting for it.

    Attributes:
        progress: how far it has come.
        where: the neighbourhood it comes from.
        deadline: CLOCK_MONOTONIC in seconds by which the whole greeting has to be there.
        events: what to wait for before advance(), as for poll(2).
    """

    def __init__(
        self,
        connection: socket.socket,
        where: str,
        deadline: float,
        tls: ssl.SSLContext | None = None,
        hint: bytes = b"",
    ) -> None:
        """Take over a connection.

        Args:
            connection: its socket.
            where: the neighbourhood it comes from.
            deadline: CLOCK_MONOTONIC in seconds.
            tls: to prove that it knows the code; None: the kernel has told who it is.
            hint: what senders that know the code have in their first TLS record.
        """
        connection.setblocking(False)
        self._connection = connection
        self._tls, self._hint = tls, hint
        self._seen = 0
        self._hello = bytearray()
        self.where, self.deadline = where, deadline
        self.progress = Progress.PROVED if tls is None else Progress.SILENT
        self.events = select.POLLIN

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._connection.fileno()

    def advance(self) -> Arrival | None:
        """Process what has come; return the sender when its greeting is complete.

        Raises:
            OSError: the connection is lost, or the other end does not know the code.
            FrameError: it says something else.
        """
        try:
            if self.progress == Progress.SILENT and not self._begin_tls():
                return None
            if self.progress in (Progress.TLS_BEGUN, Progress.HINTED):
                self.events = select.POLLIN
                assert isinstance(self._connection, ssl.SSLSocket)
                self._connection.do_handshake()
                self.progress = Progress.PROVED
            session = self._read_hello()
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self.events = select.POLLOUT
            return None
        return Arrival(self._connection, session, bytes(self._hello))

    def _begin_tls(self) -> bool:
        """Wrap the connection once the first TLS record is there; return whether it is.

        Until then nothing is spent on it, and the record shows whether the other end seems to know the code.
        """
        assert self._tls is not None
        record = self._connection.recv(_MAX_FIRST_RECORD, socket.MSG_PEEK)
        if len(record) == self._seen:  # readable, and yet nothing has come: nothing will
            raise ConnectionResetError("closed by the other end")
        self._seen = len(record)
        if record[0] != _TLS_HANDSHAKE:
            self._connection.recv(_MAX_FIRST_RECORD)  # what is unread would cut off the answer
            refuse(self._connection, _NEEDS_CODE)
            raise FrameError("it does not know of the code")
        need = _RECORD_HEAD + (int.from_bytes(record[3:5]) if len(record) >= _RECORD_HEAD else 0)
        if len(record) < min(need, _MAX_FIRST_RECORD):
            self._wait_for(min(need, _MAX_FIRST_RECORD))
            return False
        self._wait_for(1)
        self._connection = self._tls.wrap_socket(
            self._connection, server_side=True, do_handshake_on_connect=False
        )
        self.progress = Progress.HINTED if self._hint in record else Progress.TLS_BEGUN
        return True

    def _wait_for(self, size: int) -> None:
        """Let poll(2) report the connection as readable when this many bytes are there, or its end."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _read_hello(self) -> str:
        """Return the session of a complete greeting."""
        need = protocol.HEAD.size
        while True:
            if len(self._hello) >= protocol.HEAD.size:
                head = protocol.parse_head(bytes(self._hello[: protocol.HEAD.size]))
                protocol.require_hello(head)
                need = protocol.HEAD.size + head.body
            if len(self._hello) == need:
                return protocol.parse_hello(bytes(self._hello[protocol.HEAD.size :]))
            part = self._connection.recv(need - len(self._hello))
            if not part:
                raise ConnectionResetError("closed by the other end")
            self._hello += part

    def refuse(self, reason: str) -> None:
        """Tell the reason to who has proved himself, and close the connection."""
        if self.progress == Progress.PROVED:
            refuse(self._connection, reason)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._connection.close()
