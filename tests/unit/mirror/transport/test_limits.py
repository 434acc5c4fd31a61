"""Bounds of what a sender declares: beyond them there is one line, no work and no mirror."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.mirror.image import commit as commit_module
from redirty.collector.mirror.image.page_store import MAX_WINDOWS, WINDOW_SHIFT
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.compression import compress, decompress
from redirty.collector.mirror.transport.receiver import AbandonedError, Receiver

from tests.support.wire_fuzz import frame, memory_bounded
from tests.unit.mirror.transport.test_protocol_fuzz import (
    PAGE,
    Tape,
    hello,
    pages_frame,
    source_frame,
)

START = hello() + source_frame() + pages_frame(2, [16], [1], b"a" * PAGE)
END = frame(8, b'{"information": {}}')
MEMORY = 256 << 20  # four times what is kept of mappings and notes


def parts(layout: bytes, notes: int = 1) -> bytes:
    """Return a layout in pieces, and so many empty notes."""
    step = 1 << 20
    found = b"".join(frame(7, layout[at : at + step]) for at in range(0, len(layout), step))
    return found + b"".join(frame(7, seq=1 + n) for n in range(notes))


def layout(mappings: str, zero: str = "") -> bytes:
    """Return the JSON of a process with these mappings and runs of zero pages."""
    process = f'{{"pid": 1, "source": 1, "zero": [{zero}], "mappings": [{mappings}]}}'
    return f'{{"machine": 62, "processes": [{process}]}}'.encode()


def refused(data: bytes, to: Path) -> str:
    """Return why a receiver discards a mirror."""
    receiver = Receiver(to, None, decompress)
    with memory_bounded(MEMORY), pytest.raises(AbandonedError) as error:
        receiver.serve(Tape(data))
    assert not to.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "mappings",
    [
        ",".join(["[16,17,\"rw-p\",\"\",null,0]"] * 600_000),
        ",".join(["[]"] * 600_000),
        ",".join(["{}"] * 600_000),
        "1," * (5 << 20) + "1",
        "[" + "1," * (5 << 20) + "1]",
    ],
    ids=["mappings", "lists", "objects", "numbers", "one-mapping"],
)  # fmt: skip
def test_numbers_of_mappings(mappings: str, tmp_path: Path) -> None:
    """A COMMIT of millions of mappings took all memory before the first was looked at."""
    message = refused(START + parts(layout(mappings)) + END, tmp_path / "m")
    assert f"more than {protocol.MAX_PLACES} mappings" in message


def test_as_many_mappings_as_are_allowed_are_committed(tmp_path: Path) -> None:
    count = 20_000
    rows = [[16 + 2 * i, 17 + 2 * i, "rw-p", "", None, 0] for i in range(count)]
    data = layout(json.dumps(rows)[1:-1])
    receiver = Receiver(tmp_path / "m", None, decompress)
    receiver.serve(Tape(START + parts(data) + END))
    assert receiver.committed


def test_sizes_of_mappings_and_notes(tmp_path: Path) -> None:
    piece = frame(7, b" " * (4 << 20))
    message = refused(START + piece * 17, tmp_path / "m")
    assert "mappings and notes too large" in message


def test_numbers_of_parts(tmp_path: Path) -> None:
    data = b"".join(frame(7, seq=n) for n in range(protocol.MAX_PARTS + 2))
    assert "part number out of sequence" in refused(START + data, tmp_path / "m")


@pytest.mark.parametrize("extra", [-1, 1])
def test_notes_of_each_process(extra: int, tmp_path: Path) -> None:
    data = layout('[16,17,"rw-p","",null,0]')
    message = refused(START + parts(data, 1 + extra) + END, tmp_path / "m")
    assert "notes" in message


def test_sizes_of_the_information(tmp_path: Path) -> None:
    data = frame(8, b" " * (protocol.MAX_INFORMATION + 1))
    assert "COMMIT too large" in refused(START + data, tmp_path / "m")


def test_numbers_of_digests(tmp_path: Path) -> None:
    """A digest costs as much as reading the image; one of unchanged contents costs nothing."""
    again = frame(6) * 1000
    receiver = Receiver(tmp_path / "same", None, decompress)
    with pytest.raises(Exception, match="closed by the sender"):
        receiver.serve(Tape(START + again))
    receiver.discard()
    changing = b"".join(
        pages_frame(3 + n, [16], [1], b"b" * PAGE) + frame(6)
        for n in range(protocol.MAX_DIGESTS + 1)
    )
    assert "digests" in refused(START + changing, tmp_path / "m")


def test_large_files_mapped_again_and_again(tmp_path: Path) -> None:
    """Each mapping shows all windows of a file, and own zero pages hide them: nothing else limits the work."""
    windows = 2048
    firsts = [w << WINDOW_SHIFT for w in range(windows)]
    data = START + frame(2, flags=1, source=2, seq=3)
    for number, at in enumerate(range(0, windows, 512), start=4):
        runs = protocol.pack_runs(
            np.array(firsts[at : at + 512], np.uint64), np.ones(512, np.uint64)
        )
        data += frame(3, runs + b"f" * (512 * PAGE), source=2, seq=number, runs=512)
    size = windows << WINDOW_SHIFT
    rows = [[size * i, size * (i + 1), "-w-p", "", 2, 0] for i in range(1000)]
    body = layout(json.dumps(rows)[1:-1], f"[0, {1 << 51}]")
    message = refused(data + parts(body) + END, tmp_path / "m")
    assert "too many mappings of large files" in message
    assert commit_module._VISITS == 4 * MAX_WINDOWS


def test_pages_that_decompress_to_more_than_they_say(tmp_path: Path) -> None:
    runs = protocol.pack_runs(np.array([16], np.uint64), np.array([1], np.uint64))
    bomb = bytes(compress(memoryview(bytes(64 << 20))))
    assert len(bomb) < 1 << 16
    data = frame(3, runs + bomb, flags=1, source=1, seq=3, runs=1)
    assert "violates the protocol" in refused(START + data, tmp_path / "m")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("machine", True), ("machine", "62"), ("machine", 1 << 16), ("processes", {}), ("processes", None),
        ("pid", 1.0), ("pid", "1"), ("pid", 0), ("source", None), ("source", True), ("zero", [[1]]),
        ("zero", [[1, "2"]]), ("zero", [[-1, 2]]), ("mappings", [[1, 2, ["r"] * 4, "", None, 0]]),
        ("mappings", [[1, 2, "rw-p", {}, None, 0]]), ("mappings", [[1, float("inf"), "rw-p", "", None, 0]]),
        ("mappings", [[1, 2, "rw-p", "", 2.5, 0]]), ("mappings", "text"), ("mappings", [["1", 2, "rw-p", "", None, 0]]),
    ],
)  # fmt: skip
def test_types_and_ranges_of_declared_values(field: str, value: object, tmp_path: Path) -> None:
    process = {"pid": 1, "source": 1, "zero": [], "mappings": [[16, 17, "rw-p", "", None, 0]]}
    found: dict[str, object] = {"machine": 62, "processes": [process]}
    (process if field in process else found)[field] = value
    message = refused(START + parts(json.dumps(found).encode()) + END, tmp_path / "m")
    assert "invalid mappings" in message
