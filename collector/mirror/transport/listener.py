"""Listening and connecting: addresses, TLS outside of loopback, and who may come in."""

from __future__ import annotations

import contextlib
import logging
import re
import select
import socket
import ssl
import threading
from collections.abc import Sequence

from redirty.collector.errors import RedirtyError, UsageError, why
from redirty.collector.mirror.transport import pairing
from redirty.collector.mirror.transport.peer import is_loopback, require_own
from redirty.collector.mirror.transport.receiver import LostError

log = logging.getLogger(__name__)

_UNSENT_BYTES = 256 << 10
_HANDSHAKE_S = 10.0
_GREETING_S = 3.0  # for a stranger at the door
_GREETING_LOOK_S = 0.05
_ALMOST = re.compile(r"[^/]*:\d{1,5}")
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^/\[\]:]+)):(\d{1,5})")


def parse_address(text: str) -> tuple[str, int] | None:
    """HOST:PORT or [HOST]:PORT; None when it is none, and so a directory."""
    match = _ADDRESS.fullmatch(text)
    if not match:
        if _ALMOST.fullmatch(text):  # and not a directory of that name, by mistake
            raise UsageError(
                f"an address is HOST:PORT or [HOST]:PORT, a directory of that name is ./{text}: {text}"
            )
        return None
    port = int(match[3])
    if port > 65535:
        raise UsageError(f"a port is at most 65535: {text}")
    return match[1] or match[2], port


def _tune(connection: socket.socket) -> None:
    """A peer that is gone without a word is found out."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What waits here for the link is written anew meanwhile, and was sent in vain.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def connect(host: str, port: int, code: bytes | None) -> socket.socket:
    """A connection to a receiver: with a code TLS, without one only within this machine.

    Errors: RedirtyError; OSError when nobody is there (it may come back).
    """
    connection = socket.create_connection((host, port), timeout=_HANDSHAKE_S)
    try:
        _tune(connection)
        if code is None:
            if not is_loopback(connection.getpeername()[0]):
                raise UsageError(
                    f"{host} is another machine: give the code that redirty receive shows there, "
                    "by --code-file"
                )
            return connection
        context = pairing.context(code, pairing.SENDER)
        return context.wrap_socket(connection, server_hostname=pairing.RECEIVER)
    except ssl.SSLError as e:
        connection.close()
        raise RedirtyError(
            f"{host}:{port} does not know the code, or is no redirty receive ({e.reason or e})"
        ) from None
    except BaseException:
        connection.close()
        raise


class Listener:
    """A listening socket. code: what senders have to know; None: only this user's, on loopback."""

    def __init__(self, host: str, port: int, code: bytes | None) -> None:
        self._context = None if code is None else pairing.context(code, pairing.RECEIVER)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=8)
        except OSError as e:
            raise RedirtyError(f"cannot listen on {host}:{port}: {why(e)}") from None
        self.port: int = self._listener.getsockname()[1]

    def fileno(self) -> int:
        """Readable when somebody knocks."""
        return self._listener.fileno()

    def accept(self, timeout_s: float) -> socket.socket | None:
        """One who may come in, or None."""
        if not _ready([self._listener], timeout_s):
            return None
        connection, address = self._listener.accept()
        try:
            connection.settimeout(_GREETING_S)
            _tune(connection)
            if self._context is None:
                require_own(connection)
                return connection
            return self._context.wrap_socket(connection, server_side=True)
        except (OSError, RedirtyError) as e:
            log.info("%s was not let in: %s", address[0], e)
            with contextlib.suppress(OSError):
                connection.close()
            return None

    def close(self) -> None:
        """Listens no more."""
        self._listener.close()


class _Greeting:
    """Somebody at the door while a mirror goes on: greeted in a thread, as a stranger may say nothing."""

    def __init__(self, door: Listener) -> None:
        self._found: socket.socket | None = None
        self._thread = threading.Thread(target=self._greet, args=(door,), daemon=True)
        self._thread.start()

    def _greet(self, door: Listener) -> None:
        self._found = door.accept(0)

    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> socket.socket | None:
        """Waits for it."""
        self._thread.join()
        return self._found


class ReplaceableConnection:
    """A connection that gives way when its sender comes anew: the old one may be cut without a word."""

    def __init__(self, connection: socket.socket, door: Listener) -> None:
        self._connection, self._door = connection, door
        self._knock: _Greeting | None = None

    def recv_into(self, buffer: memoryview, /) -> int:
        """See receiver.Stream."""
        connection = self._connection
        while not (isinstance(connection, ssl.SSLSocket) and connection.pending()):
            if self._knock is not None and self._knock.over():
                if self._knock.result() is not None:
                    raise LostError("its sender connected anew")
                self._knock = None
            if self._knock is None:
                ready = _ready([connection, self._door], None)
            else:
                ready = _ready([connection], _GREETING_LOOK_S)
            if self._door.fileno() in ready:
                self._knock = _Greeting(self._door)
            if connection.fileno() in ready:
                break
        connection.settimeout(30.0)
        return connection.recv_into(buffer)

    def newer(self) -> socket.socket | None:
        """Who came instead, also one who is still being greeted; the caller's from now on."""
        knock, self._knock = self._knock, None
        return None if knock is None else knock.result()

    def sendall(self, data: bytes, /) -> None:
        """See receiver.Stream."""
        self._connection.settimeout(30.0)
        self._connection.sendall(data)

    def close(self) -> None:
        """The old connection."""
        with contextlib.suppress(OSError):
            self._connection.close()


def _ready(waited_for: Sequence[socket.socket | Listener], timeout_s: float | None) -> set[int]:
    """Descriptors that there is something to read from. With poll: there may be more open files than
    select can tell of."""
    poll = select.poll()
    for each in waited_for:
        poll.register(each.fileno(), select.POLLIN)
    return {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
