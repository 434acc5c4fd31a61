"""The window of unacknowledged frames, and what is sent again after the connection was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.connection import Connection
from redirty.collector.mirror.transport.frame_writer import FrameWriter
from redirty.collector.mirror.transport.protocol import ConnectionLostError, Head
from redirty.collector.pageset import U64, page_numbers

NO_PAGES: U64 = np.empty(0, np.uint64)


class FakeConnection:
    """Keeps what is sent, or fails as a lost connection does."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.lost = False
        self.on_ack: Callable[[int], None] = lambda number: None

    def send(self, data: bytes | memoryview) -> None:
        if self.lost:
            raise ConnectionLostError("cut")
        self.sent.append(bytes(data))

    def acknowledge(self, number: int) -> None:
        self.on_ack(number)

    def heads(self) -> list[Head]:
        return [
            protocol.parse_head(data[: protocol.HEAD.size])
            for data in self.sent
            if data.startswith(b"RDM1")
        ]


def writer() -> tuple[FrameWriter, FakeConnection]:
    connection = FakeConnection()
    return FrameWriter(cast(Connection, connection)), connection


def pages(*numbers: int) -> U64:
    return np.array(numbers, np.uint64)


def test_frames_are_kept_until_they_are_acknowledged() -> None:
    frames, connection = writer()
    assert frames.all_acknowledged
    frames.control(protocol.SOURCE, 1, 0, NO_PAGES, NO_PAGES)
    frames.pages(1, pages(5), pages(1), memoryview(bytes(4096)), 4096)
    assert [(h.type, h.number) for h in connection.heads()] == [
        (protocol.SOURCE, 1),
        (protocol.PAGES, 2),
    ]
    connection.acknowledge(1)
    assert not frames.all_acknowledged
    connection.acknowledge(2)
    assert frames.all_acknowledged


def test_data_smaller_than_its_pages_is_flagged_as_compressed() -> None:
    frames, connection = writer()
    frames.pages(1, pages(5), pages(1), memoryview(b"x"), 4096)
    frames.pages(1, pages(5), pages(1), memoryview(bytes(4096)), 4096)
    assert [h.flags for h in connection.heads()] == [protocol.COMPRESSED, 0]


def test_control_frames_are_sent_again_and_lost_pages_are_returned() -> None:
    frames, connection = writer()
    frames.control(protocol.SOURCE, 1, 1, NO_PAGES, NO_PAGES)
    frames.pages(1, pages(9, 5), pages(2, 1), memoryview(bytes(3 * 4096)), 3 * 4096)
    connection.lost = True
    frames.control(protocol.ZERO, 1, 0, pages(7), pages(3))  # a loss shows with the next pages
    with pytest.raises(ConnectionLostError):
        frames.pages(1, pages(20), pages(1), memoryview(bytes(4096)), 4096)
    connection.lost, connection.sent = False, []
    lost = frames.resume(1)
    assert [(source, page_numbers(found).tolist()) for source, found in lost] == [
        (1, [5, 9, 10]),
        (1, [20]),
    ]
    (head,) = connection.heads()
    assert (head.type, head.number, head.runs) == (protocol.ZERO, 2, 1)
    connection.acknowledge(2)
    assert frames.all_acknowledged
