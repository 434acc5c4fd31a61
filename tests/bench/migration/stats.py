"""CRIU's stats-dump: the work of a pre-dump.

Format: two magic numbers, a length, and a StatsEntry (images/stats.proto) in protobuf's wire format,
https://protobuf.dev/programming-guides/encoding/. Only its varints and messages are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = (0x55105940, 0x57093306)  # IMG_SERVICE_MAGIC, STATS_MAGIC
_DUMP = 1  # of StatsEntry
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class DumpStats:
    """Statistics of a dump. Times in seconds; frozen: how long the target was stopped."""

    freezing_s: float
    frozen_s: float
    memdump_s: float
    memwrite_s: float
    pages_scanned: int
    pages_skipped: int
    pages_written: int


def parse(data: bytes) -> DumpStats:
    """Parse a stats-dump file.

    Raises: ValueError.
    """
    if len(data) < 12 or struct.unpack_from("<2I", data) != _MAGIC:
        raise ValueError("this is no stats-dump of CRIU")
    (length,) = struct.unpack_from("<I", data, 8)
    if len(data) < 12 + length:
        raise ValueError("the stats-dump is cut off")
    for number, value in _fields(data[12 : 12 + length]):
        if number == _DUMP and isinstance(value, bytes):
            return _dump(dict(_numbers(value)))
    raise ValueError("the stats-dump tells of no dump")


def _dump(field: dict[int, int]) -> DumpStats:
    def seconds(number: int) -> float:
        return field.get(number, 0) / 1e6

    return DumpStats(
        freezing_s=seconds(1),
        frozen_s=seconds(2),
        memdump_s=seconds(3),
        memwrite_s=seconds(4),
        pages_scanned=field.get(5, 0),
        pages_skipped=field.get(6, 0),
        pages_written=field.get(7, 0),
    )


def _numbers(message: bytes) -> Iterator[tuple[int, int]]:
    return ((number, value) for number, value in _fields(message) if isinstance(value, int))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no such kind of field: {kind}")
        if at + length > len(message):
            raise ValueError("a field is cut off")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number, and where the next field is."""
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("a number is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
