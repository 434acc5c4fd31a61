"""The sender's connection to a receiver: dialing, resuming after a loss, paced output, parsed input."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError
from redirty.collector.mirror.transport.sockets import readable

STALL_S = 30.0  # a connection without any progress for this long counts as lost
_RETRY_S = 0.25
_POLL_S = 0.25
_MIN_WAIT_S = 0.001
_PENDING_ERROR_S = 0.2
_MAX_LOSSES = 100
_READ_BYTES = 1 << 16
_READS = 16  # at a time, however quickly the other end sends
_MAX_ANSWERS = 2  # one request is under way at a time


class Connection:
    """A connection that can be dialed again when it is lost; open() has to be called first.

    Attributes:
        deadline: CLOCK_MONOTONIC in seconds after which no method waits any longer; None: no deadline.
        sent_bytes: all bytes sent, over all connections.
        peer_hashes: the receiver can digest the hashes of pages.
        finished: the mirror was committed, or refused by the receiver: nothing is left to abandon.
        on_ack: called with the frame number of each acknowledgement.
    """

    def __init__(
        self, dial: Callable[[], socket.socket], rate_limiter: RateLimiter, patience_s: float
    ) -> None:
        """Prepare a connection.

        Args:
            dial: makes a connected socket, TLS included.
            rate_limiter: paces all output.
            patience_s: for how long a lost connection is retried.
        """
        self._dial, self._rate_limiter, self._patience_s = dial, rate_limiter, patience_s
        self._session = secrets.token_hex(16)
        self._socket: socket.socket | None = None
        self._input = bytearray()
        self._answers: deque[bytes] = deque()
        self._acknowledged = 0
        self._losses = 0
        self.deadline: float | None = None
        self.sent_bytes = 0
        self.peer_hashes = False
        self.finished = False
        self.on_ack: Callable[[int], None] = lambda number: None

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._socket is not None

    # ---- connecting ----

    def open(self) -> int:
        """Connect, and return the number of the last frame that the receiver has.

        Raises:
            RedirtyError: the receiver refuses, belongs to another user, or does not speak the protocol.
            OSError: nobody listens.
            ConnectionLostError: the connection was lost during the greeting.
        """
        self._input = bytearray()
        self._answers.clear()
        self._socket = self._dial()
        hello = json.dumps({"version": protocol.VERSION, "session": self._session}).encode()
        try:
            self.send(protocol.head(protocol.HELLO, payload=len(hello)) + hello)
            return self._frames_in(self.wait_answer(STALL_S))
        except BaseException:
            self.drop()
            raise

    def _frames_in(self, welcome: bytes) -> int:
        """Return the number of the last frame that the receiver has, as its WELCOME says."""
        try:
            found = protocol.parse_json(welcome)
        except FrameError as e:
            self._refuse(str(e))
        done, self.peer_hashes = found.get("done"), found.get("hashes") is True
        if isinstance(done, bool) or not isinstance(done, int) or done < 0:
            self._refuse("invalid WELCOME")
        return done

    def _refuse(self, reason: str) -> NoReturn:
        """End the connection to something that does not speak the protocol."""
        self.drop()
        raise RedirtyError(f"the peer is not a redirty receive: {reason}")

    def reopen(self) -> int:
        """Connect again after a loss, and return the number of the last frame that the receiver has.

        Raises:
            RedirtyError: the receiver does not come back within the patience, refuses this session, or the
                connection was lost too often.
        """
        self.drop()
        self._losses += 1
        if self._losses > _MAX_LOSSES:
            raise RedirtyError(
                f"connection lost more than {_MAX_LOSSES} times; the target keeps running, the mirror was "
                "discarded"
            )
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return self.open()
            except (OSError, ConnectionLostError) as e:
                if time.monotonic() > until:
                    raise RedirtyError(
                        f"connection lost and not re-established within {self._patience_s:.0f} s: {e}; "
                        "the target keeps running, the mirror was discarded"
                    ) from None
                time.sleep(_RETRY_S)

    def drop(self) -> None:
        """Close the socket; the session can be resumed by reopen()."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    # ---- output ----

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes at the pace of the rate limiter.

        Raises:
            ConnectionLostError: the connection is lost.
            RedirtyError: the receiver failed, and reported why before it closed the connection.
        """
        if self._socket is None:
            raise ConnectionLostError("not connected")
        view = memoryview(data)
        piece = self._rate_limiter.piece
        try:
            for at in range(0, len(view), piece):
                part = view[at : at + piece]
                self._rate_limiter.wait(len(part))
                self._socket.settimeout(self._limited(STALL_S))
                self._socket.sendall(part)
        except OSError as e:
            self._read_pending_error()
            self.drop()
            raise ConnectionLostError(why(e)) from None
        except BaseException:
            self.drop()  # in the middle of a frame: no other frame can follow
            raise
        self.sent_bytes += len(view)

    def _read_pending_error(self) -> None:
        """Read the reason that a failing receiver sends before it closes the connection."""
        with contextlib.suppress(OSError, ConnectionLostError, FrameError):
            self.receive(_PENDING_ERROR_S)

    def _limited(self, seconds: float) -> float:
        """Return a waiting time that ends with the deadline at the latest."""
        if self.deadline is None:
            return seconds
        return max(min(seconds, self.deadline - time.monotonic()), _MIN_WAIT_S)

    # ---- input ----

    def receive(self, wait_s: float) -> None:
        """Process everything that has arrived, after waiting for up to `wait_s` for the first byte.

        Raises:
            ConnectionLostError: the connection is lost.
            RedirtyError: the receiver reports an error, or does not speak the protocol.
        """
        if self._socket is None:
            raise ConnectionLostError("not connected")
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        try:
            if not pending and not readable([self._socket], wait_s):
                return
            self._socket.settimeout(0)
            for _ in range(_READS):
                part = self._socket.recv(_READ_BYTES)
                if not part:
                    raise ConnectionResetError("the receiver closed it")
                self._input += part
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as e:
            self.drop()
            self._parse()
            if not self._answers:
                raise ConnectionLostError(why(e)) from None
            return
        self._parse()

    def _parse(self) -> None:
        size = protocol.HEAD.size
        while len(self._input) >= size:
            try:
                head = protocol.parse_head(bytes(self._input[:size]))
            except FrameError as e:
                self._refuse(str(e))
            if head.runs or head.payload > protocol.MAX_ANSWER:
                self._refuse("frame too large")
            if len(self._input) < size + head.body:
                return
            body = bytes(self._input[size : size + head.body])
            del self._input[: size + head.body]
            if head.type == protocol.ACK:
                try:
                    self.acknowledge(head.number)
                except FrameError as e:
                    self._refuse(str(e))
            elif head.type == protocol.ERROR:
                self.finished = True
                self.drop()
                raise RedirtyError(
                    f"the receiver failed: {body.decode(errors='replace')}; the target keeps running"
                )
            elif head.type in (protocol.WELCOME, protocol.ANSWER):
                if len(self._answers) >= _MAX_ANSWERS:
                    self._refuse("answers without a question")
                self._answers.append(body)
            else:
                self._refuse(f"unknown frame type {head.type}")

    def acknowledge(self, number: int) -> None:
        """Note that the receiver has all frames up to `number`.

        Raises:
            FrameError: no such frame was sent.
        """
        self._acknowledged = max(self._acknowledged, number)
        self.on_ack(number)

    def wait(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Receive until a condition holds.

        The time limit restarts with each acknowledgement, unless there is a deadline.

        Raises:
            ConnectionLostError: nothing was acknowledged for `limit_s`, or the connection is lost.
        """
        until = time.monotonic() + self._limited(limit_s)
        acknowledged = self._acknowledged
        while not condition():
            if self._acknowledged != acknowledged and self.deadline is None:
                acknowledged, until = self._acknowledged, time.monotonic() + limit_s
            left = until - time.monotonic()
            if left <= 0:
                self.drop()
                raise ConnectionLostError("the receiver does not answer")
            self.receive(min(left, _POLL_S))

    def wait_answer(self, limit_s: float) -> bytes:
        """Return the payload of the receiver's next answer.

        Raises:
            ConnectionLostError: no answer came within `limit_s`, or the connection is lost.
        """
        self.wait(lambda: bool(self._answers), limit_s)
        return self._answers.popleft()
