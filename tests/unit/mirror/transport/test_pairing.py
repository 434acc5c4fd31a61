"""Pairing codes, and the TLS handshake between ends that know them or do not."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.transport import pairing

from tests.support.waiting import PATIENCE_S


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, str]:
    """Do a handshake, and return the error of each end, '' if it succeeded."""
    local, peer = socket.socketpair()
    found = {}

    def one_end(name: str, sock: socket.socket, context: ssl.SSLContext, **more: object) -> None:
        sock.settimeout(PATIENCE_S)
        try:
            with context.wrap_socket(sock, **more) as wrapped:  # type: ignore[arg-type]
                wrapped.sendall(b"x")
                found[name] = "" if wrapped.recv(1) == b"x" else "closed"
                assert wrapped.version() == "TLSv1.3"
        except OSError as e:
            found[name] = str(e)

    thread = threading.Thread(
        target=one_end, args=("server", local, server), kwargs={"server_side": True}
    )
    thread.start()
    one_end("client", peer, client, server_hostname=pairing.RECEIVER)
    thread.join()
    return found["server"], found["client"]


def test_only_a_peer_that_knows_the_code_is_accepted() -> None:
    code, other = pairing.parse_code(pairing.new_code()), pairing.parse_code(pairing.new_code())
    receiver, sender = (pairing.context(code, r) for r in (pairing.RECEIVER, pairing.SENDER))
    assert handshake(receiver, sender) == ("", "")
    wrong = pairing.context(other, pairing.SENDER)
    server, client = handshake(receiver, wrong)
    assert server and client
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    server, client = handshake(receiver, nobody)
    assert server
    # a sender's certificate does not make a receiver
    fake = pairing.context(code, pairing.SENDER)
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert fake.verify_mode is ssl.CERT_REQUIRED and as_server is not None


def test_codes_are_read_in_any_spelling() -> None:
    text = pairing.new_code()
    assert pairing.parse_code(text) == pairing.parse_code(text.upper().replace("-", " ") + "\n")
    for wrong in ("", "aaaa", text + "a", text[:-1] + "1"):
        with pytest.raises(RedirtyError, match="code"):
            pairing.parse_code(wrong)
