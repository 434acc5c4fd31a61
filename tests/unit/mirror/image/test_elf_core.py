"""Headers of core files."""

from __future__ import annotations

import struct

import pytest
from redirty.collector.mirror.image.elf_core import Segment, make_header


def test_more_mappings_than_the_elf_header_can_count() -> None:
    segments = [Segment(i << 12, (i + 1) << 12, "r--p", None) for i in range(70_000)]
    header = make_header(segments, b"notes", 62)
    (count,) = struct.unpack_from("<H", header, 56)
    (table,) = struct.unpack_from("<Q", header, 40)
    assert count == 0xFFFF
    assert struct.unpack_from("<I", header, table + 44)[0] == 70_001
    assert header.endswith(b"notes")
    with pytest.raises(ValueError, match="room"):
        make_header(segments, bytes(64 << 20), 62)
