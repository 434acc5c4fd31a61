"""Listening and connecting: addresses, TLS outside of loopback, and authentication of the peer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import ssl
import threading

from redirty.collector.errors import RedirtyError, UsageError, why
from redirty.collector.mirror.transport import pairing
from redirty.collector.mirror.transport.peer import is_loopback, require_own
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.transport.sockets import readable

log = logging.getLogger(__name__)

_UNSENT_BYTES = 256 << 10
_CONNECT_S = 10.0
_HANDSHAKE_S = 3.0  # time limit for a peer that is not authenticated yet
_HANDSHAKE_POLL_S = 0.05
_TRANSFER_S = 30.0
_ALMOST_ADDRESS = re.compile(r"[^/]*:\d{1,5}")
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^/\[\]:]+)):(\d{1,5})")


def parse_address(text: str) -> tuple[str, int] | None:
    """Parse HOST:PORT or [HOST]:PORT; return None for anything else, which names a directory.

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


def _tune(connection: socket.socket) -> None:
    """Set socket options: low latency, a short send queue, detection of a dead peer."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Keep the send queue short: sending a page is wasted if the target writes it while it waits there.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def connect(host: str, port: int, code: bytes | None) -> socket.socket:
    """Connect to a receiver: with a code over TLS, without one within this machine only.

    Raises:
        RedirtyError: the peer does not know the code.
        UsageError: a code is needed for another machine.
        OSError: nobody listens (a receiver may come back).
    """
    connection = socket.create_connection((host, port), timeout=_CONNECT_S)
    try:
        _tune(connection)
        if code is None:
            if not is_loopback(connection.getpeername()[0]):
                raise UsageError(
                    f"{host} is another machine: give the code that redirty receive shows there with "
                    "--code-file"
                )
            return connection
        context = pairing.context(code, pairing.SENDER)
        return context.wrap_socket(connection, server_hostname=pairing.RECEIVER)
    except ssl.SSLError as e:
        connection.close()
        raise RedirtyError(
            f"TLS handshake with {host}:{port} failed ({e.reason or e}): the peer does not know the code, or "
            "is not a redirty receive; check --code-file at both ends"
        ) from None
    except BaseException:
        connection.close()
        raise


class Listener:
    """A listening socket that accepts authenticated senders only."""

    def __init__(self, host: str, port: int, code: bytes | None) -> None:
        """Listen on an address.

        Args:
            host: name or address to listen on.
            port: TCP port; 0: any free one.
            code: what senders have to know, over TLS; None: processes of this user or root, on loopback.

        Raises:
            RedirtyError: the address cannot be used.
        """
        self._context = None if code is None else pairing.context(code, pairing.RECEIVER)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=8)
        except socket.gaierror as e:
            raise RedirtyError(f"cannot listen on {host}:{port}: {e.strerror}") from None
        except OSError as e:  # Python adds the address to the text of its strerror
            reason = why(OSError(e.errno, os.strerror(e.errno or 0)))
            raise RedirtyError(f"cannot listen on {host}:{port}: {reason}") from None
        self.port: int = self._listener.getsockname()[1]

    def fileno(self) -> int:
        """Return the file descriptor, which is readable when a connection is pending."""
        return self._listener.fileno()

    def accept(self, timeout_s: float) -> socket.socket | None:
        """Accept an authenticated connection, or return None."""
        if not readable([self._listener], timeout_s):
            return None
        connection, address = self._listener.accept()
        try:
            connection.settimeout(_HANDSHAKE_S)
            _tune(connection)
            if self._context is None:
                require_own(connection)
                return connection
            return self._context.wrap_socket(connection, server_side=True)
        except (OSError, RedirtyError) as e:
            log.info("rejected connection from %s: %s", address[0], e)
            with contextlib.suppress(OSError):
                connection.close()
            return None

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


class _Handshake:
    """Accepts a connection in a thread, as an unknown peer may stay silent, while the transfer continues."""

    def __init__(self, listener: Listener) -> None:
        self._accepted: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        self._thread.start()

    def _accept(self, listener: Listener) -> None:
        self._accepted = listener.accept(0)

    def finished(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> socket.socket | None:
        """Wait for the end, and return the authenticated connection, if any."""
        self._thread.join()
        return self._accepted


class ReplaceableConnection:
    """A connection that yields to a newer one of its sender, as the old one may be cut without notice."""

    def __init__(self, connection: socket.socket, listener: Listener) -> None:
        self._connection, self._listener = connection, listener
        self._handshake: _Handshake | None = None

    def recv_into(self, buffer: memoryview, /) -> int:
        """See receiver.Stream.

        Raises:
            ConnectionLostError: the sender has connected again.
        """
        connection = self._connection
        while not (isinstance(connection, ssl.SSLSocket) and connection.pending()):
            if self._handshake is not None and self._handshake.finished():
                if self._handshake.result() is not None:
                    raise ConnectionLostError("the sender connected again")
                self._handshake = None
            if self._handshake is None:
                ready = readable([connection, self._listener], None)
            else:
                ready = readable([connection], _HANDSHAKE_POLL_S)
            if self._listener.fileno() in ready:
                self._handshake = _Handshake(self._listener)
            if connection.fileno() in ready:
                break
        connection.settimeout(_TRANSFER_S)
        return connection.recv_into(buffer)

    def take_replacement(self) -> socket.socket | None:
        """Return the newer connection, after its handshake; the caller has to close it."""
        handshake, self._handshake = self._handshake, None
        return None if handshake is None else handshake.result()

    def sendall(self, data: bytes, /) -> None:
        """See receiver.Stream."""
        self._connection.settimeout(_TRANSFER_S)
        self._connection.sendall(data)

    def close(self) -> None:
        """Close the old connection."""
        with contextlib.suppress(OSError):
            self._connection.close()
