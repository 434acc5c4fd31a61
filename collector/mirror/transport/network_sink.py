"""The sender's end of a connection: frames out, acknowledgements in, and what was lost when it broke."""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.commit import PlacedProcess
from redirty.collector.mirror.image.image import FILE
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.peer import require_own
from redirty.collector.mirror.transport.protocol import FrameError
from redirty.collector.mirror.transport.sink import BrokenError
from redirty.collector.pageset import U64, PageSet, from_ranges

_STALL_S = 30.0  # without any progress, a connection counts as broken
_COMMIT_S = 3600.0
_RETRY_S = 0.25
_MOST_BREAKS = 100
_PART = 1 << 20


def _readable(connection: socket.socket, wait_s: float) -> bool:
    """With poll: there may be more open files than select can tell of."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


class _Unacknowledged(NamedTuple):
    """A frame. data: of a frame that is sent again as it was; None: its pages are dirty again."""

    number: int
    source: int
    firsts: U64
    lengths: U64
    data: bytes | None


class NetworkSink:
    """See sink.Sink. connect: makes a connection, TLS and all. patience_s: for how long a broken one is
    tried again. deadline: of CLOCK_MONOTONIC; nothing waits longer."""

    def __init__(
        self, connect: Callable[[], socket.socket], pace: RateLimiter, patience_s: float
    ) -> None:
        self._connect, self._pace, self._patience_s = connect, pace, patience_s
        self._session = secrets.token_hex(16)
        self._unacknowledged: deque[_Unacknowledged] = deque()
        self._answers: deque[bytes] = deque()
        self._number = 0
        self._acknowledged = 0
        self._in = bytearray()
        self._socket: socket.socket | None = None
        self.deadline: float | None = None
        self.sent_bytes = 0
        self.breaks = 0
        self._ended = False
        self._open()

    # ---- connecting ----

    def _open(self) -> int:
        """A new connection; the last frame that is at the other end. Errors: RedirtyError, OSError."""
        self._in = bytearray()
        self._answers.clear()
        self._socket = self._connect()
        hello = json.dumps({"version": protocol.VERSION, "session": self._session}).encode()
        try:
            self._raw(protocol.head(protocol.HELLO, payload=len(hello)) + hello)
            answer: dict[str, Any] = json.loads(self._wait_answer(_STALL_S))
            if not isinstance(self._socket, ssl.SSLSocket):
                # Only now: the kernel knows whose a connection is when it was accepted.
                require_own(self._socket)
            return int(answer["done"])
        except BaseException:
            self._drop()
            raise

    def reconnect(self) -> list[tuple[int, PageSet]]:
        """After a break: connects again, and says which pages were not acknowledged, by source.

        Errors: RedirtyError when it does not come back within the patience, or does not know us.
        """
        self._drop()
        self.breaks += 1
        if self.breaks > _MOST_BREAKS:
            raise RedirtyError(
                "the connection broke again and again; the target runs on, there is no mirror"
            )
        until = time.monotonic() + self._patience_s
        while True:
            try:
                done = self._open()
                break
            except (OSError, BrokenError) as e:
                if time.monotonic() > until:
                    raise RedirtyError(
                        f"the connection broke, and could not be made again within "
                        f"{self._patience_s:.0f} s: {e}; the target runs on, there is no mirror"
                    ) from None
                time.sleep(_RETRY_S)
        self._forget(done)
        lost: list[tuple[int, PageSet]] = []
        again = list(self._unacknowledged)
        self._unacknowledged.clear()
        self._number = done
        for frame in again:
            if frame.data is None:
                order = np.argsort(frame.firsts)
                firsts, lengths = frame.firsts[order], frame.lengths[order]
                lost.append((frame.source, from_ranges(firsts, firsts + lengths)))
        for frame in again:
            if frame.data is not None:
                head = protocol.parse_head(frame.data[: protocol.HEAD.size])
                self._control(head.type, frame.source, head.flags, frame.firsts, frame.lengths)
        return lost

    def _drop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _left(self, most: float) -> float:
        if self.deadline is None:
            return most
        return max(min(most, self.deadline - time.monotonic()), 0.001)

    # ---- out ----

    def _raw(self, data: bytes | memoryview) -> None:
        """Errors: BrokenError."""
        if self._socket is None:
            raise BrokenError("there is no connection")
        view = memoryview(data)
        piece = self._pace.piece
        try:
            for at in range(0, len(view), piece):
                part = view[at : at + piece]
                self._pace.wait(len(part))
                self._socket.settimeout(self._left(_STALL_S))
                self._socket.sendall(part)
        except OSError as e:
            self._take_last_words()
            self._drop()
            raise BrokenError(why(e)) from None
        except BaseException:
            self._drop()  # in the middle of a frame: nothing can follow it
            raise
        self.sent_bytes += len(view)

    def _take_last_words(self) -> None:
        """A receiver that fails says why before it closes."""
        with contextlib.suppress(OSError, BrokenError, FrameError):
            self._drain(0.2)

    def _control(self, kind: int, source: int, flags: int, firsts: U64, lengths: U64) -> None:
        """A frame that is kept until it is acknowledged. It never fails: a break shows at the next pages."""
        self._number += 1
        data = protocol.head(
            kind, flags=flags, source=source, number=self._number, runs=len(firsts)
        )
        data += protocol.pack_runs(firsts, lengths)
        self._unacknowledged.append(_Unacknowledged(self._number, source, firsts, lengths, data))
        with contextlib.suppress(BrokenError):
            self._raw(data)

    def declare(self, number: int, kind: str) -> None:
        """See Sink."""
        none = np.empty(0, np.uint64)
        self._control(protocol.SOURCE, number, int(kind == FILE), none, none)

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """See Sink."""
        for part in protocol.cut(firsts, lengths):
            self._control(protocol.ZERO, number, 0, *part)

    def write(self, number: int, firsts: U64, lengths: U64, data: memoryview, raw: int) -> None:
        """See Sink. Errors: BrokenError."""
        self._drain(0)
        self._number += 1
        frame = _Unacknowledged(self._number, number, firsts, lengths, None)
        self._unacknowledged.append(frame)
        head = protocol.head(
            protocol.PAGES,
            flags=protocol.COMPRESSED if len(data) != raw else 0,
            source=number,
            number=self._number,
            runs=len(firsts),
            payload=len(data),
        )
        self._raw(head + protocol.pack_runs(firsts, lengths))
        self._raw(data)

    # ---- in ----

    def _drain(self, wait_s: float) -> None:
        """Takes what has come, after waiting for it for up to wait_s. Errors: BrokenError, RedirtyError."""
        if self._socket is None:
            raise BrokenError("there is no connection")
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        try:
            if not pending and not _readable(self._socket, wait_s):
                return
            self._socket.settimeout(0)
            while True:
                part = self._socket.recv(65536)
                if not part:
                    raise ConnectionResetError("the receiver closed it")
                self._in += part
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as e:
            self._drop()
            self._parse()
            if not self._answers:
                raise BrokenError(why(e)) from None
            return
        self._parse()

    def _parse(self) -> None:
        size = protocol.HEAD.size
        while len(self._in) >= size:
            try:
                head = protocol.parse_head(bytes(self._in[:size]))
            except FrameError as e:
                self._drop()
                raise RedirtyError(f"the other end is no redirty receive: {e}") from None
            if len(self._in) < size + head.body:
                return
            body = bytes(self._in[size : size + head.body])
            del self._in[: size + head.body]
            if head.type == protocol.ACK:
                self._forget(head.number)
            elif head.type == protocol.ERROR:
                self._ended = True
                self._drop()
                raise RedirtyError(
                    f"the receiver says: {body.decode(errors='replace')}; the target runs on"
                )
            else:
                self._answers.append(body)

    def _forget(self, number: int) -> None:
        self._acknowledged = max(self._acknowledged, number)
        while self._unacknowledged and self._unacknowledged[0].number <= number:
            self._unacknowledged.popleft()

    def _wait(self, there: Callable[[], bool], most_s: float) -> None:
        """Until something has come. Errors: BrokenError when it does not within most_s."""
        until = time.monotonic() + self._left(most_s)
        seen = self._acknowledged
        while not there():
            if self._acknowledged != seen and self.deadline is None:
                seen, until = self._acknowledged, time.monotonic() + most_s
            left = until - time.monotonic()
            if left <= 0:
                self._drop()
                raise BrokenError("the other end does not answer")
            self._drain(min(left, 0.25))

    def _wait_answer(self, most_s: float) -> bytes:
        self._wait(lambda: bool(self._answers), most_s)
        return self._answers.popleft()

    def flush(self) -> None:
        """See Sink. Errors: BrokenError."""
        self._raw(protocol.head(protocol.FLUSH))
        self._wait(lambda: not self._unacknowledged, _STALL_S)

    def digest(self) -> str:
        """See Sink. Errors: BrokenError."""
        self._raw(protocol.head(protocol.DIGEST))
        return self._wait_answer(_COMMIT_S).decode(errors="replace")

    def commit(
        self, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
    ) -> None:
        """See Sink. Errors: RedirtyError, BrokenError."""
        layout = {"machine": machine, "processes": [p.as_json() for p in processes]}
        parts = [json.dumps(layout).encode(errors="replace"), *(p.notes for p in processes)]
        for number, part in enumerate(parts):
            for at in range(0, max(len(part), 1), _PART):
                piece = part[at : at + _PART]
                self._raw(protocol.head(protocol.PART, number=number, payload=len(piece)) + piece)
        words = json.dumps({"information": information}).encode(errors="replace")
        self._raw(protocol.head(protocol.COMMIT, payload=len(words)) + words)
        if self._wait_answer(_COMMIT_S) != b"committed":
            raise RedirtyError("the receiver did not commit: there is no mirror")
        self._ended = True

    def close(self) -> None:
        """See Sink."""
        if self._socket is not None and not self._ended:
            with contextlib.suppress(BrokenError, RedirtyError):
                self.deadline = time.monotonic() + 1.0
                self._raw(protocol.head(protocol.ABANDON))
        self._drop()
