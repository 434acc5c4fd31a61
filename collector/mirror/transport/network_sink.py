"""The sender's half of the mirror protocol, as a sink of pages."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.image.image import FILE
from redirty.collector.mirror.image.process_image import PlacedProcess
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.connection import STALL_S, Connection
from redirty.collector.mirror.transport.frame_writer import FrameWriter
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.pageset import U64, PageSet

_COMMIT_S = 3600.0
_ABANDON_S = 1.0
_PART_BYTES = 1 << 20


class NetworkSink:
    """A PageSink at the other end of a connection."""

    def __init__(
        self, dial: Callable[[], socket.socket], rate_limiter: RateLimiter, patience_s: float
    ) -> None:
        """Connect to a receiver.

        Args:
            dial: makes a connected socket, TLS included.
            rate_limiter: paces all output.
            patience_s: for how long a lost connection is retried.

        Raises:
            RedirtyError: the receiver refuses, or belongs to another user.
            OSError: nobody listens.
            ConnectionLostError: the connection was lost during the greeting.
        """
        self._connection = Connection(dial, rate_limiter, patience_s)
        self._frames = FrameWriter(self._connection)
        self._connection.open()

    @property
    def sent_bytes(self) -> int:
        """All bytes sent."""
        return self._connection.sent_bytes

    @property
    def deadline(self) -> float | None:
        """CLOCK_MONOTONIC in seconds after which no method waits any longer."""
        return self._connection.deadline

    @deadline.setter
    def deadline(self, deadline: float | None) -> None:
        self._connection.deadline = deadline

    def declare(self, number: int, kind: str) -> None:
        """See PageSink."""
        none = np.empty(0, np.uint64)
        self._frames.control(protocol.SOURCE, number, int(kind == FILE), none, none)

    def write(
        self, number: int, firsts: U64, lengths: U64, data: memoryview, raw_bytes: int
    ) -> None:
        """See PageSink."""
        self._connection.receive(0)
        self._frames.pages(number, firsts, lengths, data, raw_bytes)

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """See PageSink."""
        for part_firsts, part_lengths in protocol.cut(firsts, lengths):
            self._frames.control(protocol.ZERO, number, 0, part_firsts, part_lengths)

    def flush(self) -> None:
        """See PageSink."""
        self._connection.send(protocol.head(protocol.FLUSH))
        self._connection.wait(lambda: self._frames.all_acknowledged, STALL_S)

    def reconnect(self) -> list[tuple[int, PageSet]]:
        """See PageSink."""
        return self._frames.resume(self._connection.reopen())

    @property
    def hashes(self) -> bool:
        """Whether the receiver can digest hashes, which those of older versions cannot."""
        return self._connection.peer_hashes

    def digest(self, seed: int | None = None) -> str:
        """See PageSink."""
        payload = b"" if seed is None else protocol.SEED.pack(seed)
        self._connection.send(protocol.head(protocol.DIGEST, payload=len(payload)) + payload)
        return self._connection.wait_answer(_COMMIT_S).decode(errors="replace")

    def commit(
        self, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
    ) -> None:
        """See PageSink."""
        layout = {"machine": machine, "processes": [p.as_json() for p in processes]}
        parts = [json.dumps(layout).encode(errors="replace"), *(p.notes for p in processes)]
        for number, part in enumerate(parts):
            for at in range(0, max(len(part), 1), _PART_BYTES):
                piece = part[at : at + _PART_BYTES]
                head = protocol.head(protocol.PART, number=number, payload=len(piece))
                self._connection.send(head + piece)
        request = json.dumps({"information": information}).encode(errors="replace")
        self._connection.send(protocol.head(protocol.COMMIT, payload=len(request)) + request)
        if self._connection.wait_answer(_COMMIT_S) != b"committed":
            raise RedirtyError("the receiver did not commit: the mirror was discarded")
        self._connection.finished = True

    def close(self) -> None:
        """See PageSink."""
        if self._connection.connected and not self._connection.finished:
            with contextlib.suppress(ConnectionLostError, RedirtyError):
                self.deadline = time.monotonic() + _ABANDON_S
                self._connection.send(protocol.head(protocol.ABANDON))
        self._connection.drop()
