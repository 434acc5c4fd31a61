"""The mappings and notes of a mirror's processes, as a sender declares them for the commit.

The declared numbers are untrusted, and cost more than the bytes that declare them: an element of a list takes a few
bytes on the wire and a hundred in memory. So elements are counted before anything is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

from redirty.collector.mirror.image.process_image import PlacedProcess
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.protocol import FrameError

_FIELDS = 8  # at most so many values in a list or an object, on average


def parse_layout(parts: Sequence[bytearray]) -> tuple[int, list[PlacedProcess]]:
    """Return the ELF machine number and the processes.

    Args:
        parts: the mappings as JSON, then the notes of each process.

    Raises:
        FrameError: the JSON is invalid, or there is too much of it.
        ValueError: a field is out of range, or mappings overlap.
        TypeError: a field has the wrong type.
        KeyError: a field is missing.
        IndexError: notes are missing.
    """
    data = parts[0]
    # These bytes may also be in a path: the counts are upper bounds.
    places = data.count(b"[") + data.count(b"{")
    if places > protocol.MAX_PLACES or data.count(b",") > _FIELDS * protocol.MAX_PLACES:
        raise FrameError(f"more than {protocol.MAX_PLACES} mappings")
    layout = protocol.parse_json(data)
    declared = layout["processes"]
    if not isinstance(declared, list) or len(declared) != len(parts) - 1:
        raise ValueError("a process without notes, or notes without a process")
    machine = layout["machine"]
    if isinstance(machine, bool) or not isinstance(machine, int) or not 0 <= machine < 1 << 16:
        raise ValueError("machine number out of range")
    processes = [
        PlacedProcess.from_json(fields, bytes(notes))
        for fields, notes in zip(declared, parts[1:], strict=True)
    ]
    return machine, processes
