"""Measures how fast this machine copies: pages of our own through the copier to where a mirror would go.

All that a mirror does for a page is done: it is read as from another process, searched for zeros, hashed, compressed,
encrypted, sent to a receiver in a process of its own, and stored. What is not in it: the wire, the load of the target,
and a disk that is slower than the memory in front of it.

First pages that follow each other, as in a first pass, then every other one, as programs leave them that write here
and there. How much compression saves depends on the contents: with a target they are copies of its pages.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from redirty.collector.errors import RedirtyError, UsageError, why
from redirty.collector.linux.process_memory import ProcessMemory
from redirty.collector.mirror.image.image import SPACE, Image
from redirty.collector.mirror.pipeline import Pipeline
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.mirror.transport import compression, pairing
from redirty.collector.mirror.transport.local_sink import LocalSink
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError
from redirty.collector.mirror.transport.receiver import Receiver
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.mirror.transport.sockets import tune
from redirty.collector.model.prediction import CopierSpeed
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64, Bools, PageSet, empty, from_pages

LOCAL, TCP, TLS = "local", "tcp", "tls"
_ZSTD = "+zstd"
_CODE_BYTES = 16
_PIECE_PAGES = 8192  # many batches: a mirror's passes have no gaps either
_SCRATCH_PAGES = 2 * _PIECE_PAGES  # more than a cache holds: a target's memory is not in it either
SCRATCH_BYTES = _SCRATCH_PAGES * PAGE_SIZE
_WORDS = 4096  # different words in scratch pages of our own: zstd leaves a third of them, as of a heap with text
_LEAST_S = 1.0  # a mirror meets busy moments of the machine, too
_FLUSHES, _FEW = 7, 8  # times; pages
_LEAST_PIECES, _MOST_PIECES = 3, 16
_MEMORY, _ROOM_BYTES = (
    Path("/dev/shm"),
    4 << 30,
)  # a tmpfs that most machines have; far more than is stored
_PATIENCE_S = 60.0
_CODE = "REDIRTY_CALIBRATION_CODE"  # not on the command line, which all users can read
_FAR_END = "from redirty.collector.mirror.calibration.copier import far_end; far_end()"


@dataclass(frozen=True)
class Kind:
    """Where a mirror would go.

    Attributes:
        destination: LOCAL, TCP or TLS.
        compressed: page contents are compressed.
        directory: of LOCAL: a directory of its file system.
    """

    destination: str
    compressed: bool = False
    directory: Path = Path()

    def __str__(self) -> str:
        """Return the kind in words: 'over TLS, compressed'."""
        if self.destination == LOCAL:
            return f"to a directory of {self.directory.absolute()}"
        text = "over TLS" if self.destination == TLS else "over TCP"
        return f"{text}, compressed" if self.compressed else text


def parse_kind(text: str, option: str) -> Kind:
    """Return the kind that a user has typed: local, local:DIR, tcp, tls, tcp+zstd, tls+zstd.

    Raises:
        UsageError: it is none of these.
    """
    name, colon, directory = text.partition(":")
    if name == LOCAL and (directory or not colon):
        return Kind(LOCAL, directory=Path(directory))
    if text.removesuffix(_ZSTD) in (TCP, TLS):
        return Kind(text.removesuffix(_ZSTD), text.endswith(_ZSTD))
    raise UsageError(
        f"{option} must be local, local:DIR, tcp or tls, the latter two with +zstd, got {text}"
    )


def copier_speed(kind: Kind, contents: bytes = b"") -> CopierSpeed:
    """Measure the speed that a mirror of this kind reaches here; takes a second or two.

    Args:
        kind: where it would go.
        contents: whole pages, none of them zero, like those that it would copy; without them the compression ratio is
            not measured.

    Raises:
        RedirtyError: nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(_opened(kind))
        pipeline = Pipeline(sink, compression.compress if kind.compressed else None)
        stack.callback(pipeline.close)
        copies = _Copies(sink, pipeline, stack.enter_context(_scratch(contents)))
        try:
            copies.take()  # the first one starts threads, and is not counted
            sent_before, pages_before = sink.sent_bytes, copies.pages
            page_s = copies.page_s()
            wire_bytes, pages = sink.sent_bytes - sent_before, copies.pages - pages_before
            scattered_s = copies.page_s(step=2)
            compare_s = copies.compare_s(step=2)
            flush_s = statistics.median(copies.flush_s() for _ in range(_FLUSHES))
        except ConnectionLostError as e:
            raise RedirtyError(
                f"cannot measure the copier's speed: {e}; give another --destination"
            ) from None
    ratio = pages * PAGE_SIZE / wire_bytes if kind.compressed and contents and wire_bytes else None
    return CopierSpeed(
        PAGE_SIZE / page_s, max(scattered_s - page_s, 0.0), compare_s, flush_s, ratio
    )


@contextlib.contextmanager
def _scratch(contents: bytes) -> Iterator[_ScratchSource]:
    try:
        source = _ScratchSource(contents)
    except OSError as e:
        raise RedirtyError(f"cannot measure the copier's speed: {why(e)}") from None
    with contextlib.closing(source):
        yield source


class _ScratchSource:
    """Memory of this process with contents, as a Source that has any number of pages, one after the other."""

    def __init__(self, contents: bytes) -> None:
        self.number = 1
        self.have = empty()
        self.pending = empty()
        self.unread = empty()
        self.retried = empty()
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()
        self._map = mmap.mmap(-1, SCRATCH_BYTES)
        filled = np.frombuffer(self._map, np.uint64)
        if contents:
            filled[:] = np.resize(np.frombuffer(contents, np.uint64), len(filled))
        else:
            rng = np.random.default_rng(1)
            words = rng.integers(1, 1 << 63, _WORDS, dtype=np.uint64)
            filled[:] = words[rng.integers(0, _WORDS, len(filled))]
        self._first = np.uint64(filled.ctypes.data >> PAGE_SHIFT)
        del filled  # it keeps the mapping from being closed
        self._memory = ProcessMemory(os.getpid())

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """See Source. The pages of a piece are in memory in the same order, as pieces do not wrap."""
        return self._memory.read(self._first + pages % np.uint64(_SCRATCH_PAGES), buffer)

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
        self._map.close()


class _Copies:
    """Copies pieces of scratch memory. pages: number of pages copied."""

    def __init__(self, sink: PageSink, pipeline: Pipeline, source: _ScratchSource) -> None:
        sink.declare(source.number, SPACE)
        self._sink, self._pipeline, self._source = sink, pipeline, source
        self._next = 0
        self.pages = 0

    def page_s(self, step: int = 1) -> float:
        """Return the mean time of a page in seconds. step: the pages of a piece are this far from each other."""
        started, pages = time.monotonic(), 0
        for number in range(_MOST_PIECES):
            if number >= _LEAST_PIECES and time.monotonic() - started >= _LEAST_S:
                break
            pages += self.take(step)
        return (time.monotonic() - started) / pages

    def compare_s(self, step: int) -> float:
        """Return the mean time of a page that was sent before, and is not sent again."""
        self._next -= _PIECE_PAGES
        started = time.monotonic()
        count = self.take(step)
        return (time.monotonic() - started) / count

    def flush_s(self) -> float:
        """Return the seconds until some pages have arrived that were just copied."""
        self._sink.flush()
        self.take(_PIECE_PAGES // _FEW)
        started = time.monotonic()
        self._sink.flush()
        return time.monotonic() - started

    def take(self, step: int = 1) -> int:
        """Copy the next piece; return its number of pages."""
        first, self._next = self._next, self._next + _PIECE_PAGES
        numbers = np.arange(first, self._next, step, dtype=np.uint64)
        self._pipeline.copy([(self._source, from_pages(numbers))])
        self.pages += len(numbers)
        return len(numbers)


@contextlib.contextmanager
def _opened(kind: Kind) -> Iterator[PageSink]:
    """Open a sink of a kind; what it stores is removed at the end."""
    name = f".redirty-{secrets.token_hex(8)}"
    if kind.destination == LOCAL:
        image = Image.create(kind.directory / name, secrets.token_hex(16))
        with contextlib.closing(LocalSink(image, RateLimiter(None))) as sink:
            yield sink
        return
    code = secrets.token_bytes(_CODE_BYTES) if kind.destination == TLS else b""
    with _far(_scratch_directory() / name, code) as far, contextlib.closing(far):
        yield far


def _scratch_directory() -> Path:
    """Return where the far end stores: in memory if there is room, as nobody knows the other machine's disk."""
    try:
        room = os.statvfs(_MEMORY)
        free = os.sysconf("SC_AVPHYS_PAGES") * PAGE_SIZE
        if os.access(_MEMORY, os.W_OK) and min(room.f_bavail * room.f_frsize, free) > _ROOM_BYTES:
            return _MEMORY
    except OSError:
        pass
    return Path(tempfile.gettempdir())


@contextlib.contextmanager
def _far(directory: Path, code: bytes) -> Iterator[PageSink]:
    """Start a receiver in a process of its own, and connect to it over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, peer = listener.accept()
    for end in (near, far):
        tune(end)
    with far:
        if peer != near.getsockname():
            near.close()
            raise RedirtyError(
                "cannot measure the copier's speed: another program connected to its port; try again"
            )
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _FAR_END, str(far.fileno()), str(directory)],
            env={**os.environ, _CODE: code.hex()},
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    try:
        yield NetworkSink(lambda: _dialed(near, code), RateLimiter(None), 0.0)
    except OSError as e:
        raise RedirtyError(f"cannot measure the copier's speed: {why(e)}") from None
    finally:
        near.close()  # its end ends the process, too
        process.wait()


def _dialed(near: socket.socket, code: bytes) -> socket.socket:
    near.settimeout(_PATIENCE_S)
    if not code:
        return near
    return pairing.context(code, pairing.SENDER).wrap_socket(near, server_hostname=pairing.RECEIVER)


def far_end() -> None:
    """Receive pages in a process of its own, until the sender gives up."""
    number, directory = sys.argv[1:]
    code = os.environ[_CODE]
    connection = socket.socket(fileno=int(number))
    if code:
        context = pairing.context(bytes.fromhex(code), pairing.RECEIVER)
        connection = context.wrap_socket(connection, server_side=True)
    receiver = Receiver(Path(directory), decompress=compression.decompress)
    with contextlib.suppress(RedirtyError, FrameError, ConnectionLostError):
        receiver.serve(connection)
    receiver.discard()
