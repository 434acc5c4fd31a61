"""The sender's way to a receiver: by TLS with the code, or to a socket of this machine whose owner is known."""

from __future__ import annotations

import select
import socket
import ssl
import time

from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.mirror.transport import pairing, rendezvous
from redirty.collector.mirror.transport.peer import is_loopback
from redirty.collector.mirror.transport.sockets import tune

_CONNECT_S = 10.0
_HANDSHAKE_S = 30.0  # for the whole of it
_TRIES, _RETRY_S = 8, 0.25


def connect(host: str, port: int, code: bytes | None) -> socket.socket:
    """Connect to a receiver: with a code over TLS, without one within this machine only.

    Raises:
        RedirtyError: the peer does not know the code, or belongs to another user.
        UsageError: a code is needed for another machine, or there is no such name.
        ConnectionLostError: the peer is not a redirty receive, or cannot be met.
        OSError: nobody listens (a receiver may come back).
    """
    for _ in range(_TRIES):
        try:
            return _connect(host, port, code)
        except (ConnectionResetError, ssl.SSLEOFError):  # it may have too many candidates
            time.sleep(_RETRY_S)
    return _connect(host, port, code)


def _connect(host: str, port: int, code: bytes | None) -> socket.socket:
    """Try once to connect: see connect()."""
    context = None if code is None else pairing.context(code, pairing.SENDER)
    try:
        connection = socket.create_connection((host, port), timeout=_CONNECT_S)
    except UnicodeError:  # of the codec idna, for a label that is empty or too long
        raise UsageError(f"invalid address: {host} cannot be the name of a machine") from None
    try:
        if context is None:
            if not is_loopback(connection.getpeername()[0]):
                raise UsageError(
                    f"{host} is another machine: give the code that redirty receive shows there with "
                    "--code-file"
                )
            with connection:
                return rendezvous.meet(connection)
        tune(connection)
        tls = context.wrap_socket(
            connection, server_hostname=pairing.RECEIVER, do_handshake_on_connect=False
        )
        connection = tls
        _shake_hands(tls)
        return tls
    except ssl.SSLEOFError:
        connection.close()
        raise
    except ssl.SSLError as e:
        connection.close()
        raise RedirtyError(
            f"TLS handshake with {host}:{port} failed ({e.reason or e}): the peer does not know the code, or "
            "is not a redirty receive; check --code-file at both ends"
        ) from None
    except BaseException:
        connection.close()
        raise


def _shake_hands(tls: ssl.SSLSocket) -> None:
    """Do the handshake within a limited time, however slowly the other end sends.

    Raises:
        OSError: the handshake failed, or was not done in time.
    """
    until = time.monotonic() + _HANDSHAKE_S
    tls.setblocking(False)
    while True:
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            event = select.POLLIN
        except ssl.SSLWantWriteError:
            event = select.POLLOUT
        poll = select.poll()
        poll.register(tls.fileno(), event)
        if not poll.poll(max(until - time.monotonic(), 0) * 1000):
            raise TimeoutError("no TLS handshake in time")
