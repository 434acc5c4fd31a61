"""Fuzzing of all that a mirror's two ends read: 10,000 inputs each, or REDIRTY_FUZZ of them.

Each reader ends with its documented errors only, soon, and in bounded memory. An example is the seed of BATCH inputs.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.journal import NAME, read_journal
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import rendezvous
from redirty.collector.mirror.transport.candidate import Candidate
from redirty.collector.mirror.transport.compression import compress, decompress
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError
from redirty.collector.mirror.transport.receiver import AbandonedError, Receiver

from tests.support import wire_fuzz
from tests.support.wire_fuzz import memory_bounded

INPUTS = int(os.environ.get("REDIRTY_FUZZ", "10000"))
BATCH = 50
MEMORY = 192 << 20
SESSION = "0123456789abcdef"
LIMIT = 1 << 16  # what a socket takes while nobody reads


def fuzz(read: Callable[[random.Random], None]) -> None:
    """Let a reader read INPUTS inputs, which it makes with the random numbers given."""

    @settings(
        max_examples=-(-INPUTS // BATCH),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, (1 << 64) - 1))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(BATCH):
            read(rng)

    with memory_bounded(MEMORY):
        run()


class Tape:
    """A connection that was recorded."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv_into(self, buffer: memoryview, /) -> int:
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def sendall(self, data: bytes, /) -> None:
        """Take what the receiver sends, as no sender waits for it."""


def test_what_a_receiver_reads() -> None:
    ends = {"committed": 0, "lost": 0, "refused": 0, "discarded": 0}

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        to = Path(name, "m")

        def read(rng: random.Random) -> None:
            receiver = Receiver(to, None, decompress)
            try:
                receiver.serve(Tape(wire_fuzz.to_receiver(rng, SESSION, compress)))
            except ConnectionLostError:
                ends["lost"] += 1
                receiver.discard()
            except FrameError:
                ends["refused"] += 1
            except AbandonedError:
                ends["discarded"] += 1
            else:
                ends["committed"] += 1
                assert {p.name for p in to.iterdir()} >= {"mirror.json", "memory.core"}
                for path in to.iterdir():
                    path.unlink()
                to.rmdir()
            assert not list(Path(name).iterdir())

        fuzz(read)
    # the inputs reach every end, and not mostly the first one
    assert min(ends.values()) > sum(ends.values()) // 100, ends


def test_what_is_read_before_the_greeting() -> None:
    arrived = 0

    def read(rng: random.Random) -> None:
        nonlocal arrived
        near, far = socket.socketpair()
        with near, far:
            data = wire_fuzz.to_receiver(rng, SESSION, compress)[:8192]
            far.sendall(data)
            far.close()
            candidate = Candidate(near, "here", 0.0)
            with contextlib.suppress(OSError, FrameError):
                arrival = candidate.advance()
                assert arrival is not None  # as the other end has closed, it cannot wait for more
                assert data.startswith(arrival.hello)
                arrived += 1
            candidate.close()

    fuzz(read)
    assert arrived > INPUTS // 4


def test_what_a_sender_reads() -> None:
    ends = {"refused": 0, "lost": 0, "committed": 0}

    def read(rng: random.Random) -> None:
        made: list[socket.socket] = []

        def dial() -> socket.socket:
            near, far = socket.socketpair()
            data, open_ended = wire_fuzz.welcome(rng)
            far.sendall(data[:LIMIT])
            if not open_ended or len(data) > LIMIT:
                far.shutdown(socket.SHUT_WR)
            made.append(far)
            return near

        def answer() -> None:
            with contextlib.suppress(OSError):
                data, complete = wire_fuzz.to_sender(rng)
                made[-1].sendall(data[:LIMIT])
                if not complete:
                    made[-1].shutdown(socket.SHUT_WR)

        def mirror() -> None:
            sink = NetworkSink(dial, RateLimiter(None), patience_s=0.0)
            try:
                sink.declare(1, SPACE)
                sink.declare(2, FILE)
                try:
                    sink.write(1, first, length, memoryview(bytes(4096)), 4096)
                    answer()
                    sink.flush()
                    sink.digest()
                except ConnectionLostError:
                    sink.reconnect()
                    answer()
                sink.commit([], 62, {})
            finally:
                sink.close()

        first, length = np.array([16], np.uint64), np.array([1], np.uint64)
        try:
            mirror()
            ends["committed"] += 1
        except RedirtyError:
            ends["refused"] += 1
        except ConnectionLostError:
            ends["lost"] += 1
        for far in made:
            far.close()

    fuzz(read)
    assert min(ends.values()) > INPUTS // 200, ends


def test_what_a_signpost_says() -> None:
    found = 0

    def read(rng: random.Random) -> None:
        nonlocal found
        near, far = socket.socketpair()
        with near, far:
            far.sendall(wire_fuzz.signpost(rng)[:LIMIT])
            far.close()
            with contextlib.suppress(RedirtyError, ConnectionLostError, OSError):
                name = rendezvous._read_signpost(near)
                assert len(name) == 48 and name.startswith(b"redirty/receive/")
                found += 1

    fuzz(read)
    assert found > INPUTS // 10


def test_what_a_journal_says() -> None:
    valid = 0

    def read(rng: random.Random) -> None:
        nonlocal valid
        data = wire_fuzz.journal(rng)
        with contextlib.suppress(ValueError):
            found, good = read_journal(io.BytesIO(data))
            assert 4096 <= good <= len(data)
            for windows in found.windows.values():
                assert sorted(windows.values()) == list(range(len(windows)))
            valid += 1

    fuzz(read)
    assert valid > INPUTS // 4


def test_an_image_that_a_damaged_journal_describes(tmp_path: Path) -> None:
    """Resuming opens what the journal names: fewer inputs, as each is a directory."""
    resumed = 0
    rng = random.Random(1)
    for at in range(300):
        to = tmp_path / str(at)
        to.mkdir(mode=0o700)
        (to / NAME).write_bytes(wire_fuzz.journal(rng))
        for number in (0, 1):
            (to / f".{number}.pages").write_bytes(b"x" * 5000)
        for path in to.iterdir():
            path.chmod(0o600)
        with contextlib.suppress(RedirtyError):
            Image.resume(Folder.open_own(to)).discard()
            resumed += 1
    assert resumed > 30
