"""Measures how fast this machine copies: pages of our own through the copier to where a mirror would go.

All that a mirror does for a page is done: it is read as from another process, searched for zeros, hashed, compressed,
encrypted, sent to a receiver in a process of its own, and stored. What is not in it: the wire, the load of the target,
and a disk that is slower than the memory in front of it.
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
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64, Bools, PageSet, empty, from_ranges

LOCAL, TCP, TLS = "local", "tcp", "tls"
_ZSTD = "+zstd"
_CODE_BYTES = 16
_SCRATCH_BYTES = 8 << 20  # of a piece
_WORD_BYTES = 8
_WORDS = 4096  # different words in the scratch pages: zstd leaves a third of them, as of a heap with text
_LEAST_S = 0.3
_LEAST_PIECES, _MOST_PIECES = 5, 64
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


def copier_rate(kind: Kind) -> float:
    """Measure the bytes of pages a second that a mirror of this kind reaches here; takes a second.

    Raises:
        RedirtyError: nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(_opened(kind))
        pipeline = Pipeline(sink, compression.compress if kind.compressed else None)
        stack.callback(pipeline.close)
        scratch = _scratch()
        stack.callback(scratch.close)
        try:
            _copy(sink, pipeline, 1, scratch)  # the first one starts threads, and is not counted
            started = last = time.monotonic()
            rates: list[float] = []
            while len(rates) < _LEAST_PIECES or (
                last - started < _LEAST_S and len(rates) < _MOST_PIECES
            ):
                copied = _copy(sink, pipeline, len(rates) + 2, scratch)
                now = time.monotonic()
                rates.append(copied / (now - last))
                last = now
            sink.flush()
            return statistics.median(rates)  # a busy moment of the machine is in few of them
        except ConnectionLostError as e:
            raise RedirtyError(
                f"cannot measure the copier's speed: {e}; give another --destination"
            ) from None


class _ScratchSource:
    """Pages of this process as a Source that has sent none of them."""

    def __init__(self, number: int, pages: PageSet, memory: ProcessMemory) -> None:
        self.number = number
        self.have = empty()
        self.pending = pages
        self.unread = empty()
        self.retried = empty()
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()
        self._memory = memory

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """See Source."""
        return self._memory.read(pages, buffer)


class _Scratch:
    """Memory of this process with contents. pages: its pages."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        rng = np.random.default_rng(1)
        words = rng.integers(1, 1 << 63, _WORDS, dtype=np.uint64)
        contents = np.frombuffer(self._map, np.uint64)
        contents[:] = words[rng.integers(0, _WORDS, size // _WORD_BYTES)]
        first = contents.ctypes.data >> PAGE_SHIFT
        del contents  # it keeps the mapping from being closed
        ends = np.array([first + size // PAGE_SIZE], np.uint64)
        self.pages = from_ranges(np.array([first], np.uint64), ends)
        self.memory = ProcessMemory(os.getpid())

    def close(self) -> None:
        """Release the memory."""
        self.memory.close()
        self._map.close()


def _scratch() -> _Scratch:
    try:
        return _Scratch(_SCRATCH_BYTES)
    except OSError as e:
        raise RedirtyError(f"cannot measure the copier's speed: {why(e)}") from None


def _copy(sink: PageSink, pipeline: Pipeline, number: int, scratch: _Scratch) -> int:
    """Copy all scratch pages as a source of their own, and return their bytes."""
    sink.declare(number, SPACE)
    source = _ScratchSource(number, scratch.pages, scratch.memory)
    return pipeline.copy([(source, scratch.pages)]).sent_pages * PAGE_SIZE


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
    with _far(Path(tempfile.gettempdir()) / name, code) as far, contextlib.closing(far):
        yield far


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
