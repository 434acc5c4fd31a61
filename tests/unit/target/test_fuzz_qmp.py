"""QMP sockets, at which any program may answer: only errors, and within bounds of time and size."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.ptrace.helpers.qmp import Monitor, QmpError, StoppedGuest
from redirty.collector.target.qemu import memory_of, pieces

from tests.support.fuzz import damaged, fuzzed, value, values_in

MTREE = (
    'FlatView #0\n AS "memory", root: system\n AS "cpu-memory-0", root: system\n Root memory region: system\n'
    "  0000000000000000-00000000000bffff (prio 0, ram): pc.ram\n"
    "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\n"
    "  0000000000100000-0000000007ffffff (prio 0, ram): pc.ram @0000000000100000\n"
)
GREETING = {"QMP": {"version": {"qemu": {"micro": 2, "minor": 2, "major": 7}}, "capabilities": []}}


class Server:
    """Sends canned bytes to each client, then closes the connection."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.content = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                try:
                    client.sendall(self.content)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("qmp") / "socket")
    SERVERS.append(made)
    yield made
    made.close()


SERVERS: list[Server] = []


def answers(rng: random.Random) -> bytes:
    """Return the lines of a conversation, some of them odd."""
    said: list[object] = [
        GREETING, {"return": {}}, {"event": "RESUME", "data": {}}, {"return": {"running": True}},
        {"return": [{"id": "pc.ram", "size": 1 << 27}]}, {"return": MTREE},
        {"return": "Host virtual address for 0x0 (pc.ram) is 0x7f0000000000\n"},
        {"return": "Host virtual address for 0x100000 (pc.ram) is 0x7f0000100000\n"}, {"return": {}},
    ]  # fmt: skip
    for _ in range(rng.randrange(3)):
        places = list(values_in(said))
        container, key = rng.choice(places)
        container[key] = value(rng)
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in said)
    return damaged(rng, lines) if rng.random() < 0.5 else lines


@pytest.mark.usefixtures("server")
def test_any_answers() -> None:
    _any_answers()


@fuzzed
def _any_answers(rng: random.Random) -> None:
    server = SERVERS[-1]
    server.content = answers(rng)
    try:
        for piece in memory_of(server.path):
            assert 0 < piece.size < 1 << 64 and 0 <= piece.address < 1 << 64
    except (OSError, ValueError):
        pass
    try:
        StoppedGuest(server.path, 5.0).resume()
    except QmpError:
        pass


@fuzzed
def test_any_memory_tree(rng: random.Random) -> None:
    tree = damaged(rng, MTREE.encode()).decode(errors="replace")
    try:
        found = pieces(tree, {"pc.ram", ""})
    except ValueError:
        return
    assert all(0 <= start < end < 1 << 64 for start, end in found)


ENDLESS = {
    "one line": b'{"QMP": "' + b"x" * (32 << 20),
    "events": json.dumps(GREETING).encode() + b"\n" + b'{"event": "X"}\n' * 20_000,
    "brackets": b"[" * 200_000 + b"\n",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_answers_without_end(kind: str, server: Server) -> None:
    server.content = ENDLESS[kind]
    with pytest.raises((OSError, ValueError)):
        Monitor(server.path, 60.0)


def test_an_answer_that_drips_is_bounded_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then does not extend the time limit. The clock is the test's."""
    ends, now = socket.socketpair(), iter(range(1_000_000))
    monkeypatch.setattr(
        "redirty.collector.ptrace.helpers.qmp.time.monotonic", lambda: float(next(now))
    )
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def drip() -> None:
        client, _ = listener.accept()
        with client:
            try:
                while True:
                    client.sendall(b" ")
            except OSError:
                pass

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    with pytest.raises(TimeoutError):
        Monitor(str(tmp_path / "s"), 30.0)
    for one in (*ends, listener):
        one.close()
    thread.join()
