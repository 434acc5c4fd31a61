"""Numbered frames, kept until the receiver acknowledges them."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import NamedTuple

import numpy as np
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.connection import Connection
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError
from redirty.collector.pageset import U64, PageSet, from_ranges


class _Unacknowledged(NamedTuple):
    """A frame that was sent and not acknowledged yet.

    Attributes:
        number: its sequence number.
        source: the source that its pages belong to.
        firsts: (n,) the first page of each run.
        lengths: (n,) pages of each run.
        control: the whole frame, which is sent again unchanged; None for contents, whose pages are sent
            again from the target instead.
    """

    number: int
    source: int
    firsts: U64
    lengths: U64
    control: bytes | None


class FrameWriter:
    """Writes numbered frames to a connection, and keeps the window of unacknowledged ones."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._window: deque[_Unacknowledged] = deque()
        self._number = 0
        connection.on_ack = self._acknowledge

    @property
    def all_acknowledged(self) -> bool:
        """Whether the receiver has acknowledged every frame."""
        return not self._window

    def _acknowledge(self, number: int) -> None:
        if number > self._number:
            raise FrameError(f"it acknowledges frame {number}, and {self._number} were sent")
        while self._window and self._window[0].number <= number:
            self._window.popleft()

    def control(self, kind: int, source: int, flags: int, firsts: U64, lengths: U64) -> None:
        """Send a frame without contents, again after each loss until it is acknowledged.

        Never raises ConnectionLostError: a lost connection shows when the next pages are sent.
        """
        self._number += 1
        frame = protocol.head(
            kind, flags=flags, source=source, number=self._number, runs=len(firsts)
        )
        frame += protocol.pack_runs(firsts, lengths)
        self._window.append(_Unacknowledged(self._number, source, firsts, lengths, frame))
        with contextlib.suppress(ConnectionLostError):
            self._connection.send(frame)

    def pages(
        self, source: int, firsts: U64, lengths: U64, data: memoryview, raw_bytes: int
    ) -> None:
        """Send the contents of runs of pages.

        Args:
            source: the source that the pages belong to.
            firsts: (n,) the first page of each run.
            lengths: (n,) pages of each run.
            data: the contents, which are compressed if their size differs from `raw_bytes`.
            raw_bytes: the size of the pages.

        Raises:
            ConnectionLostError: the connection is lost.
        """
        self._number += 1
        self._window.append(_Unacknowledged(self._number, source, firsts, lengths, None))
        head = protocol.head(
            protocol.PAGES,
            flags=protocol.COMPRESSED if len(data) != raw_bytes else 0,
            source=source,
            number=self._number,
            runs=len(firsts),
            payload=len(data),
        )
        self._connection.send(head + protocol.pack_runs(firsts, lengths))
        self._connection.send(data)

    def resume(self, done: int) -> list[tuple[int, PageSet]]:
        """Continue on a new connection whose receiver has all frames up to `done`.

        Sends control frames that were not acknowledged again, and returns by source the pages whose contents
        were not acknowledged.

        Raises:
            RedirtyError: the receiver says that it has frames that were not sent.
        """
        try:
            self._connection.acknowledge(done)
        except FrameError as e:
            raise RedirtyError(f"the peer is not a redirty receive: {e}") from None
        frames = list(self._window)
        self._window.clear()
        self._number = done
        lost: list[tuple[int, PageSet]] = []
        for frame in frames:
            if frame.control is None:
                order = np.argsort(frame.firsts)
                firsts, lengths = frame.firsts[order], frame.lengths[order]
                lost.append((frame.source, from_ranges(firsts, firsts + lengths)))
        for frame in frames:
            if frame.control is not None:
                head = protocol.parse_head(frame.control[: protocol.HEAD.size])
                self.control(head.type, frame.source, head.flags, frame.firsts, frame.lengths)
        return lost
