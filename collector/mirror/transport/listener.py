"""Listening: addresses, and connections of senders that have proved who they are."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl

from redirty.collector.errors import RedirtyError, UsageError, why
from redirty.collector.mirror.transport import pairing
from redirty.collector.mirror.transport.admission import Admission
from redirty.collector.mirror.transport.candidate import Arrival
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.transport.sockets import readable

_BACKLOG = 128
_TRANSFER_S = 30.0
_ALMOST_ADDRESS = re.compile(r"[^/]*:[^/]*")
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^/\[\]:]+)):([0-9]{1,5})")


def parse_address(text: str) -> tuple[str, int] | None:
    """Parse HOST:PORT or [HOST]:PORT; return None for a text without a colon or with a slash: a directory.

    Raises:
        UsageError: the text looks like an address, but is not valid.
    """
    match = _ADDRESS.fullmatch(text)
    if not match:
        if _ALMOST_ADDRESS.fullmatch(text):  # not a directory of that name by mistake
            raise UsageError(
                f"invalid address: {text}: write HOST:PORT or [HOST]:PORT, or ./{text} for a directory"
            )
        return None
    port = int(match[3])
    if port > 65535:
        raise UsageError(f"the port must be at most 65535, got {text}")
    return match[1] or match[2], port


class Listener:
    """A listening socket that lets authenticated senders in only.

    Attributes:
        port: the TCP port.
    """

    def __init__(self, host: str, port: int, code: bytes | None) -> None:
        """Listen on an address.

        Args:
            host: name or address to listen on.
            port: TCP port; 0: any free one.
            code: what senders have to know, over TLS; None: processes of this user or root, on this machine.

        Raises:
            RedirtyError: the address cannot be used.
        """
        tls = None if code is None else pairing.context(code, pairing.RECEIVER)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except UnicodeError:  # of the codec idna, for a label that is empty or too long
            raise UsageError(f"--listen: {host} cannot be the name of a machine") from None
        except socket.gaierror as e:
            raise RedirtyError(f"cannot listen on {host}:{port}: {e.strerror}") from None
        except OSError as e:  # Python adds the address to the text of its strerror
            reason = why(OSError(e.errno, os.strerror(e.errno or 0)))
            raise RedirtyError(f"cannot listen on {host}:{port}: {reason}") from None
        self.port: int = self._socket.getsockname()[1]
        try:
            self._admission = Admission(
                self._socket, tls, b"" if code is None else pairing.hint(code)
            )
        except OSError as e:
            self._socket.close()
            raise RedirtyError(f"cannot listen on {host}:{port}: {why(e)}") from None

    def fileno(self) -> int:
        """Return a file descriptor that is readable when a sender has arrived."""
        return self._admission.fileno()

    def accept(self, timeout_s: float) -> Arrival | None:
        """Return the next sender, or None when none comes in time."""
        readable([self._admission], timeout_s)
        return self._admission.take()

    def serving(self, *, busy: bool) -> None:
        """Tell whether a mirror is being received, which strangers must not slow down."""
        self._admission.busy = busy

    def close(self) -> None:
        """Stop listening."""
        self._admission.close()
        self._socket.close()


class ReplaceableConnection:
    """A connection that yields to a newer one of its sender, as the old one may be cut without notice."""

    def __init__(self, arrival: Arrival, listener: Listener) -> None:
        self._connection, self._listener = arrival.connection, listener
        self._session = arrival.session
        self._read_already = memoryview(arrival.hello)
        self._replacement: Arrival | None = None
        listener.serving(busy=True)

    def recv_into(self, buffer: memoryview, /) -> int:
        """See receiver.Stream.

        Raises:
            ConnectionLostError: the sender has connected again.
        """
        if self._read_already:
            size = min(len(buffer), len(self._read_already))
            buffer[:size] = self._read_already[:size]
            self._read_already = self._read_already[size:]
            return size
        connection = self._connection
        while not (isinstance(connection, ssl.SSLSocket) and connection.pending()):
            ready = readable([connection, self._listener], None)
            if self._listener.fileno() in ready:
                self._admit(self._listener.accept(0))
            if connection.fileno() in ready:
                break
        connection.settimeout(_TRANSFER_S)
        return connection.recv_into(buffer)

    def _admit(self, arrival: Arrival | None) -> None:
        """Yield to a newer connection of the same sender; turn others away."""
        if arrival is None:
            return
        if arrival.session != self._session:
            arrival.refuse("it is receiving another mirror: wait, or start another redirty receive")
            return
        self._replacement = arrival
        raise ConnectionLostError("the sender connected again")

    def take_replacement(self) -> Arrival | None:
        """Return the newer connection; the caller has to close it."""
        replacement, self._replacement = self._replacement, None
        return replacement

    def sendall(self, data: bytes, /) -> None:
        """See receiver.Stream."""
        self._connection.settimeout(_TRANSFER_S)
        self._connection.sendall(data)

    def close(self) -> None:
        """Close the old connection."""
        self._listener.serving(busy=False)
        with contextlib.suppress(OSError):
            self._connection.close()
