"""Authentication of the ends of a mirror's connection: unknown peers get nothing, and block nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import pairing
from redirty.collector.mirror.transport.listener import Listener, ReplaceableConnection, connect
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.transport.protocol import (
    PAGES,
    WELCOME,
    ConnectionLostError,
    FrameError,
    head,
    parse_head,
)

from tests.support.redirty_cli import REDIRTY
from tests.support.waiting import PATIENCE_S
from tests.tiers import require, require_root

# Greets a sender as redirty receive does, and reports how many bytes came after that.
_OTHER_USER = """
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.recv(65536)
connection.sendall(bytes.fromhex(sys.argv[1]))
got = 0
while data := connection.recv(65536):
    got += len(data)
print(got, flush=True)
"""


def test_a_listener_of_another_user_gets_no_page() -> None:
    require_root()
    answer = json.dumps({"done": 0}).encode()
    welcome = head(WELCOME, payload=len(answer)) + answer
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _OTHER_USER, welcome.hex()], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        port = int(other.stdout.readline())
        with pytest.raises(RedirtyError, match="of user 65534"):
            NetworkSink(lambda: connect("127.0.0.1", port, None), RateLimiter(None), 1.0)
        assert int(other.stdout.readline()) == 0


@contextlib.contextmanager
def paired() -> Iterator[tuple[Listener, ReplaceableConnection, socket.socket, bytes]]:
    """Make a listener with a code and an authenticated connection: the receiver's end, the sender's, the code."""
    code = pairing.parse_code(pairing.new_code())
    listener = Listener("127.0.0.1", 0, code)
    found: list[socket.socket] = []
    thread = threading.Thread(
        target=lambda: found.append(connect("127.0.0.1", listener.port, code))
    )
    thread.start()
    accepted = listener.accept(PATIENCE_S)
    thread.join()
    assert accepted is not None
    guarded = ReplaceableConnection(accepted, listener)
    yield listener, guarded, found[0], code
    guarded.close()
    found[0].close()
    listener.close()


def test_silent_strangers_block_nothing() -> None:
    with paired() as (listener, guarded, sender, _):
        strangers = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(3)]
        buffer = memoryview(bytearray(4))
        for i in range(20):
            sender.sendall(b"%4d" % i)
            assert guarded.recv_into(buffer) == 4
            assert int(bytes(buffer)) == i
        # None was rejected yet: nobody waited for them.
        for stranger in strangers:
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(1)
            stranger.close()
        assert guarded.take_replacement() is None


def test_a_sender_that_connects_again_replaces_its_connection() -> None:
    with paired() as (listener, guarded, _, code):
        stranger = socket.create_connection(
            ("127.0.0.1", listener.port)
        )  # ahead of it in the queue
        found: list[socket.socket] = []
        thread = threading.Thread(
            target=lambda: found.append(connect("127.0.0.1", listener.port, code))
        )
        thread.start()
        with pytest.raises(ConnectionLostError, match="connected again"):
            guarded.recv_into(memoryview(bytearray(4)))
        replacement = guarded.take_replacement()
        assert replacement is not None
        thread.join()
        found[0].sendall(b"here")
        assert replacement.recv(4) == b"here"
        for each in (replacement, found[0], stranger):
            each.close()


def test_descriptors_may_be_beyond_the_limit_of_select() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require(hard == resource.RLIM_INFINITY or hard > 3000, "needs 3,000 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    try:
        with paired() as (listener, guarded, sender, _):
            high = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 2000)
            listener._listener.close()
            listener._listener = socket.socket(fileno=high)
            assert listener.accept(0) is None
            sender.sendall(b"here")
            assert guarded.recv_into(memoryview(bytearray(4))) == 4
    finally:
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
