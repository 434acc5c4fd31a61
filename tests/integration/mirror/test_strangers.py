"""Unprivileged users of the machine and a receiver of root's: they forge nothing, cut nothing and block nobody."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.mirror.image.image import SPACE
from redirty.collector.mirror.image.process_image import PlacedMapping, PlacedProcess
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.dial import connect
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.transport.pairing import parse_code
from redirty.collector.mirror.transport.peer import require_own

from tests.support.receiver import Receive, receive
from tests.support.strangers import UID, Stranger
from tests.support.waiting import wait_until
from tests.tiers import require, require_program, require_root

PAGE = 4096


class Sender:
    """Sends a small mirror from this process, as a true sender."""

    def __init__(self, port: int, code: Path | None) -> None:
        key = None if code is None else parse_code(code.read_text())
        self._sink = NetworkSink(
            lambda: connect("127.0.0.1", port, key), RateLimiter(None), patience_s=120
        )
        self.session: str = self._sink._connection._session
        self._sink.declare(1, SPACE)

    def write(self, times: int) -> None:
        """Write a page that many times; each is at the receiver before the next.

        A lost connection is an error here.
        """
        first, length = np.array([16], np.uint64), np.array([1], np.uint64)
        for _ in range(times):
            self._sink.write(1, first, length, memoryview(b"true" * (PAGE // 4)), PAGE)
            self._sink.flush()

    def commit(self) -> None:
        process = PlacedProcess(7, 1, (PlacedMapping(16, 17, "rw-p", ""),), b"")
        self._sink.commit([process], 62, {"schema": 1, "true": True})
        self._sink.close()


def assert_true(to: Path, receiver: Receive) -> None:
    assert receiver.wait() == 0, receiver.text()
    assert json.loads((to / "mirror.json").read_text())["true"] is True
    core = (to / "memory.core").read_bytes()
    assert b"true" * (PAGE // 4) in core and b"forged" not in core
    assert "connection lost" not in receiver.text(), receiver.text()


@pytest.fixture(params=["local", "code"])
def code(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | None]:
    """Yield a way to prove who one is: None for by the kernel, or the file of a code."""
    require_root()
    yield tmp_path / "code" if request.param == "code" else None


def words(code: Path | None) -> tuple[object, ...]:
    return () if code is None else ("--code-file", code)


@pytest.mark.parametrize("end", ["open", "closed", "half"])
def test_a_stranger_forges_no_mirror(end: str, code: Path | None, tmp_path: Path) -> None:
    """End his connections in each way: a closed one was root's for /proc/net/tcp, and its mirror committed."""
    to = tmp_path / "m"
    with receive(to, tmp_path / "log", *words(code)) as receiver:
        with Stranger("forge", receiver.port, end=end) as stranger:
            stranger.wait_for_rounds(50)
            assert receiver.alive and not to.exists(), receiver.text()
            sender = Sender(receiver.port, code)
            sender.write(1)
            stranger.wait_for_rounds(20)
            sender.commit()
        assert_true(to, receiver)


@pytest.mark.parametrize("end", ["open", "closed", "half"])
def test_a_stranger_neither_cuts_nor_takes_over_a_mirror(
    end: str, code: Path | None, tmp_path: Path
) -> None:
    """Let him even know the session: each of his connections cut the true one."""
    to = tmp_path / "m"
    with receive(to, tmp_path / "log", *words(code)) as receiver:
        sender = Sender(receiver.port, code)
        with Stranger("forge", receiver.port, session=sender.session, end=end) as stranger:
            for _ in range(20):
                stranger.wait_for_rounds(5)
                sender.write(5)
        sender.commit()
        assert_true(to, receiver)


@pytest.mark.parametrize("attack", ["silent", "tls", "garbage", "trickle"])
def test_a_crowd_blocks_no_true_sender(attack: str, code: Path | None, tmp_path: Path) -> None:
    to = tmp_path / "m"
    with (
        receive(to, tmp_path / "log", *words(code)) as receiver,
        Stranger(attack, receiver.port) as stranger,
    ):
        slow = attack == "trickle"
        stranger.wait_for_rounds(10 if slow else 300)
        sender = Sender(receiver.port, code)
        for _ in range(10):
            stranger.wait_for_rounds(1 if slow else 5)
            sender.write(5)
        sender._sink._connection.drop()  # as a network does: the way back in leads through the crowd
        stranger.wait_for_rounds(5)
        sender._sink.reconnect()
        sender.write(5)
        sender.commit()
        assert receiver.wait() == 0, receiver.text()
    assert json.loads((to / "mirror.json").read_text())["true"] is True


def test_a_sender_of_another_user_is_told(tmp_path: Path) -> None:
    require_root()
    script = "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
    script += "s.connect(chr(0) + sys.argv[1]); print(s.recv(4096)[28:].decode())"
    with receive(tmp_path / "m", tmp_path / "log", "-v") as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port)) as tcp:
            data = b""
            while part := tcp.recv(4096):
                data += part
        name = data[data.index(b"redirty/receive/") :].decode()
        done = subprocess.run(
            [require_program("python3", "python3"), "-I", "-c", script, name],
            capture_output=True, text=True, check=True, cwd="/",
        )  # fmt: skip
        assert f"of user {UID}" in done.stdout and "--code-file" in done.stdout
        wait_until(
            lambda: f"rejected connection: the other end is of user {UID}" in receiver.text(),
            "a note",
        )
    assert not (tmp_path / "m").exists()


def test_a_sender_with_the_code_that_declares_too_much_ends_the_receiver(
    code: Path | None, tmp_path: Path
) -> None:
    to = tmp_path / "m"
    with receive(to, tmp_path / "log", *words(code)) as receiver:
        sender = Sender(receiver.port, code)
        send = sender._sink._connection.send
        layout = b'{"machine": 62, "processes": [' + b"[]," * (2 << 20) + b"[]]}"
        for at in range(0, len(layout), 1 << 20):
            piece = layout[at : at + (1 << 20)]
            send(protocol.head(protocol.PART, payload=len(piece)) + piece)
        send(protocol.head(protocol.COMMIT, payload=2) + b"{}")
        assert receiver.wait() == 1, receiver.text()
        lines = receiver.text().splitlines()
        assert len([line for line in lines if "listening" not in line and "code" not in line]) == 1
        assert "more than 524288 mappings; the mirror was discarded" in lines[-1]
    assert not to.exists()


def test_a_user_who_stands_for_all_others_is_nobody() -> None:
    """Where a namespace does not map all users, those that it does not know have one number."""
    script = "import os; from redirty.collector.mirror.transport import peer; print(os.geteuid(), "
    script += "peer._stands_for_others(65534), peer._stands_for_others(0))"
    inside = [require_program("unshare", "util-linux"), "--user", "--map-root-user"]
    done = subprocess.run(
        [*inside, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    require(done.returncode == 0, f"needs user namespaces: {done.stderr[:100]}")
    assert done.stdout.split() == ["0", "True", "False"]
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far:
        require_own(near)
