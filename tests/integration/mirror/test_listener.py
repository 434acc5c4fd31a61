"""Authentication of the ends of a mirror's connection: unknown peers get nothing, and block nothing."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import admission, pairing
from redirty.collector.mirror.transport.candidate import Candidate, Progress
from redirty.collector.mirror.transport.dial import connect
from redirty.collector.mirror.transport.listener import Listener, ReplaceableConnection
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.transport.protocol import (
    ACK,
    COMMIT,
    ERROR,
    HEAD,
    HELLO,
    MEET,
    PAGES,
    VERSION,
    ConnectionLostError,
    FrameError,
    head,
    parse_head,
)

from tests.support.redirty_cli import REDIRTY
from tests.support.waiting import PATIENCE_S
from tests.tiers import require, require_root

# Leads a sender to a socket of its own, as the signpost of redirty receive does, and reports how many bytes came.
_OTHER_USER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
name = b"redirty/receive/" + os.urandom(16).hex().encode()
here = socket.socket(socket.AF_UNIX); here.bind(b"\\0" + name); here.listen()
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
signpost, _ = listener.accept()
signpost.sendall(bytes.fromhex(sys.argv[1]).replace(b"NAME" * 12, name))
signpost.close()
connection, _ = here.accept()
got = 0
while data := connection.recv(65536):
    got += len(data)
print(got, flush=True)
"""


def test_a_receiver_of_another_user_gets_no_byte() -> None:
    require_root()
    sign = head(MEET, payload=48) + b"NAME" * 12
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _OTHER_USER, sign.hex()], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        port = int(other.stdout.readline())
        with pytest.raises(RedirtyError, match="of user 65534"):
            NetworkSink(lambda: connect("127.0.0.1", port, None), RateLimiter(None), 1.0)
        assert int(other.stdout.readline()) == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (head(MEET, payload=12) + b"another/name", "does not answer as redirty receive"),
        (head(MEET, payload=48) + b"redirty/receive/" + b"0" * 32, "another network namespace"),
        (head(ERROR, payload=9) + b"no room\x1b!", "no room"),
        (b"220 mail.example ESMTP here\r\n", "not a redirty receive"),
        (b"", "does not answer as redirty receive"),
        (head(ACK) * 1000, "does not answer as redirty receive"),
    ],
)
def test_whatever_listens_there_is_told_apart(answer: bytes, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises((RedirtyError, ConnectionLostError), match=message):
            connect("127.0.0.1", listener.getsockname()[1], None)
        thread.join()


def test_a_receiver_that_waits_for_the_first_word_is_older() -> None:
    """Imitate one of before the signposts: it reads a whole head, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                assert not connection.recv(28, socket.MSG_WAITALL).startswith(b"RDM1")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ConnectionLostError, match="older version"):
            connect("127.0.0.1", listener.getsockname()[1], None)
        thread.join()


def test_an_older_sender_reads_one_line() -> None:
    """Imitate it: it sends its greeting at once, and takes an error frame for what it is."""
    listener = Listener("127.0.0.1", 0, None)
    with socket.create_connection(("127.0.0.1", listener.port)) as older:
        with contextlib.suppress(OSError):
            older.sendall(hello("0" * 16))
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := older.recv(4096):
                found += part
    first = parse_head(found[: HEAD.size])
    assert first.type == ERROR
    assert b"newer version" in found[HEAD.size : HEAD.size + first.payload]
    listener.close()


def test_a_sender_without_the_code_is_told() -> None:
    listener = Listener("127.0.0.1", 0, pairing.parse_code(pairing.new_code()))
    with pytest.raises(RedirtyError, match="needs its code"):
        connect("127.0.0.1", listener.port, None)
    listener.close()


def hello(session: str) -> bytes:
    body = json.dumps({"version": VERSION, "session": session}).encode()
    return head(HELLO, payload=len(body)) + body


def greeting_sender(port: int, code: bytes | None, session: str) -> socket.socket:
    found = connect("127.0.0.1", port, code)
    found.settimeout(PATIENCE_S)
    found.sendall(hello(session))
    return found


@contextlib.contextmanager
def paired(
    *, with_code: bool = True
) -> Iterator[tuple[Listener, ReplaceableConnection, socket.socket, bytes | None]]:
    """Make a listener and an authenticated connection: the receiver's end, the sender's, the code."""
    code = pairing.parse_code(pairing.new_code()) if with_code else None
    listener = Listener("127.0.0.1", 0, code)
    sender = greeting_sender(listener.port, code, "a" * 16)
    arrival = listener.accept(60)
    assert arrival is not None and arrival.session == "a" * 16
    guarded = ReplaceableConnection(arrival, listener)
    buffer = memoryview(bytearray(len(hello("a" * 16))))
    assert guarded.recv_into(buffer) == len(buffer)
    assert bytes(buffer) == hello("a" * 16)
    yield listener, guarded, sender, code
    guarded.close()
    sender.close()
    listener.close()


@pytest.mark.parametrize("with_code", [True, False])
def test_silent_strangers_block_nothing(with_code: bool) -> None:
    with paired(with_code=with_code) as (listener, guarded, sender, _):
        strangers = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(3)]
        buffer = memoryview(bytearray(4))
        for i in range(20):
            sender.sendall(b"%4d" % i)
            assert guarded.recv_into(buffer) == 4
            assert int(bytes(buffer)) == i
        for stranger in strangers:
            stranger.close()
        assert guarded.take_replacement() is None


@pytest.mark.parametrize("with_code", [True, False])
def test_a_sender_that_connects_again_replaces_its_connection(with_code: bool) -> None:
    with paired(with_code=with_code) as (listener, guarded, _, code):
        stranger = socket.create_connection(
            ("127.0.0.1", listener.port)
        )  # ahead of it in the queue
        again = greeting_sender(listener.port, code, "a" * 16)
        with pytest.raises(ConnectionLostError, match="connected again"):
            guarded.recv_into(memoryview(bytearray(4)))
        replacement = guarded.take_replacement()
        assert replacement is not None
        again.sendall(b"here")
        replacement.connection.settimeout(PATIENCE_S)
        assert replacement.connection.recv(4) == b"here"
        for each in (replacement.connection, again, stranger):
            each.close()


@pytest.mark.parametrize("with_code", [True, False])
def test_the_sender_of_another_mirror_does_not_disturb(with_code: bool) -> None:
    with paired(with_code=with_code) as (listener, guarded, sender, code):
        other = greeting_sender(listener.port, code, "b" * 16)

        def answer() -> None:
            other.recv(4096)
            sender.sendall(b"here")

        waiting = threading.Thread(target=answer)
        waiting.start()
        buffer = memoryview(bytearray(4))
        assert guarded.recv_into(buffer) == 4 and bytes(buffer) == b"here"
        waiting.join()
        assert other.recv(1) == b""
        other.close()


@pytest.mark.parametrize("with_code", [True, False])
def test_one_who_knows_the_code_and_greets_wrongly_is_told(with_code: bool) -> None:
    with paired(with_code=with_code) as (listener, _, _sender, code):
        for greeting in (
            head(COMMIT),
            head(HELLO, payload=1 << 20),
            head(HELLO, payload=2) + b"[]",
            b"GET / HTTP/1.1\r\n\r\n" + bytes(50),
        ):
            found = connect("127.0.0.1", listener.port, code)
            found.settimeout(PATIENCE_S)
            found.sendall(greeting)
            assert parse_head(found.recv(HEAD.size)).type == ERROR
            found.close()
        assert listener.accept(0) is None


def test_a_slow_greeting_has_one_deadline_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time for a limit on each read."""
    monkeypatch.setattr(admission, "GREETING_S", 2.0)
    listener = Listener("127.0.0.1", 0, pairing.parse_code(pairing.new_code()))
    with socket.create_connection(("127.0.0.1", listener.port)) as slow:
        for byte in itertools.chain(b"\x16\x03\x01\x02\x00\x01", itertools.repeat(0, 1000)):
            try:
                slow.sendall(bytes([byte]))
                if select.select([slow], [], [], 0.2)[0] and slow.recv(1) == b"":
                    break
            except OSError:
                break
        else:
            raise AssertionError("it may send for ever")
    listener.close()


def test_a_neighbourhood_with_many_guests_gives_way_first() -> None:
    """Strangers take all places; those of one neighbourhood give way to candidates of others, and the oldest first."""
    code = pairing.parse_code(pairing.new_code())
    context = pairing.context(code, pairing.RECEIVER)
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        there = admission.Admission(tcp, context, pairing.hint(code))
        there.close()  # its thread: what follows is not for threads
        pairs = [socket.socketpair() for _ in range(admission.MAX_STRANGERS + 3)]
        crowd = [Candidate(a, "crowd", 0.0, context, pairing.hint(code)) for a, _ in pairs[3:]]
        alone = Candidate(pairs[0][0], "alone", 0.0, context, pairing.hint(code))
        for candidate in [alone, *crowd[:-1]]:
            there._add(candidate)
        assert len(there._candidates) == admission.MAX_STRANGERS
        for _, other in pairs[3:]:  # nobody gains a place by half a greeting
            other.sendall(b"\x16\x03\x01\x02\x00")
        for candidate in crowd[:-1]:
            there._advance(candidate)
        there._add(crowd[-1])
        assert there._candidates == [alone, *crowd[1:]]
        own = Candidate(pairs[1][0], "here", 0.0)
        there._add(own)
        assert there._candidates == [alone, *crowd[1:], own]
        for a, b in pairs:
            a.close()
            b.close()


def test_who_hints_at_the_code_has_a_place_of_his_own() -> None:
    code, other = (pairing.parse_code(pairing.new_code()) for _ in range(2))
    for known, progress in ((code, Progress.HINTED), (other, Progress.TLS_BEGUN)):
        with socket.create_server(("127.0.0.1", 0)) as tcp:
            b = socket.create_connection(tcp.getsockname())
            b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            a, _ = tcp.accept()
        candidate = Candidate(
            a, "somewhere", 0.0, pairing.context(code, pairing.RECEIVER), pairing.hint(code)
        )
        record = first_record(known)
        sent = 0
        for end in (
            1,
            6,
            46,
            len(record) - 1,
            len(record),
        ):  # in pieces, as a network may deliver it
            assert candidate.progress == Progress.SILENT
            b.sendall(record[sent:end])
            sent = end
            while len(a.recv(9999, socket.MSG_PEEK)) < sent:
                pass
            if sent < len(record):
                assert candidate.advance() is None
        with contextlib.suppress(OSError):
            assert candidate.advance() is None
        assert candidate.progress == progress
        candidate.close()
        b.close()


def first_record(code: bytes) -> bytes:
    """Return what a sender with this code sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pairing.context(code, pairing.SENDER).wrap_bio(
        incoming, outgoing, server_hostname=pairing.RECEIVER
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_descriptors_may_be_beyond_the_limit_of_select() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require(hard == resource.RLIM_INFINITY or hard > 3000, "needs 3,000 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    low = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    held = [fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3) for _ in range(1100)]
    try:
        with paired() as (listener, guarded, sender, _):
            assert listener.fileno() > 1024
            assert listener.accept(0) is None
            sender.sendall(b"here")
            assert guarded.recv_into(memoryview(bytearray(4))) == 4
    finally:
        for fd in (low, *held):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_receiver_raises_its_limit_of_open_files(tmp_path: Path) -> None:
    words = [REDIRTY, "receive", "--listen", "127.0.0.1:0", "--to", tmp_path / "m"]
    soft, hard = 256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with subprocess.Popen(
        ["prlimit", f"--nofile={soft}:{hard}", *map(str, words)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        assert "listening" in process.stderr.readline()
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == hard
        process.terminate()


def test_frame_limits_belong_to_the_protocol_not_to_the_batch_size() -> None:
    """A receiver of another version accepts the same frames as before."""
    assert parse_head(head(PAGES, payload=4 << 20)).payload == 4 << 20
    with pytest.raises(FrameError, match="too large"):
        parse_head(head(PAGES, payload=5 << 20))
