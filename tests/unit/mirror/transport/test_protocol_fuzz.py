"""Fuzzing of a receiver with garbage, truncated frames and false contents."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redirty.collector.mirror.image.process_image import PlacedMapping, PlacedProcess
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.compression import compress, decompress
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError
from redirty.collector.mirror.transport.receiver import AbandonedError, Receiver
from redirty.collector.pageset import U64

PAGE = 4096
SESSION = "0123456789abcdef"


class Tape:
    """A recorded connection. answers: what the receiver sent."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.answers = b""

    def recv_into(self, buffer: memoryview, /) -> int:
        size = min(len(buffer), len(self._data))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def sendall(self, data: bytes, /) -> None:
        self.answers += data


def hello(session: str = SESSION) -> bytes:
    body = json.dumps({"version": protocol.VERSION, "session": session}).encode()
    return protocol.head(protocol.HELLO, payload=len(body)) + body


def pages_frame(number: int, firsts: list[int], lengths: list[int], data: bytes) -> bytes:
    head = protocol.head(
        protocol.PAGES, source=1, number=number, runs=len(firsts), payload=len(data)
    )
    return (
        head + protocol.pack_runs(np.array(firsts, np.uint64), np.array(lengths, np.uint64)) + data
    )


def source_frame() -> bytes:
    return protocol.head(protocol.SOURCE, source=1, number=1)


def commit_frames(processes: list[PlacedProcess], **information: object) -> bytes:
    layout = {"machine": 62, "processes": [p.as_json() for p in processes]}
    found = b""
    for number, part in enumerate([json.dumps(layout).encode(), *(p.notes for p in processes)]):
        found += protocol.head(protocol.PART, number=number, payload=len(part)) + part
    words = json.dumps({"information": information}).encode()
    return found + protocol.head(protocol.COMMIT, payload=len(words)) + words


def whole() -> bytes:
    """Return the frames of a small mirror from start to end."""
    process = PlacedProcess(
        7, 1, (PlacedMapping(16, 20, "rw-p", ""), PlacedMapping(30, 31, "r--p", "x")), b"note"
    )
    return (
        hello()
        + source_frame()
        + pages_frame(2, [16, 30], [2, 1], b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
        + commit_frames([process], bytes=3)
    )


def test_a_complete_mirror_is_committed(tmp_path: Path) -> None:
    to = tmp_path / "m"
    receiver = Receiver(to)
    receiver.serve(Tape(whole()))
    assert receiver.committed
    information = json.loads((to / "mirror.json").read_text())
    assert information["state"] == "committed" and information["bytes"] == 3
    assert {p.name for p in to.iterdir()} == {"memory.core", "mirror.json"}
    data = (to / "memory.core").read_bytes()
    assert b"a" * PAGE + b"b" * PAGE in data and b"c" * PAGE in data


def listing(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*")}


def serve(data: bytes, decompressor: bool = True) -> None:
    """Serve data, and check that only documented errors come out and nothing outside the directory changes."""
    with tempfile.TemporaryDirectory() as name:
        around = Path(name)
        to = around / "m"
        receiver = Receiver(to, None, decompress if decompressor else None)
        try:
            receiver.serve(Tape(data))
        except (ConnectionLostError, FrameError, AbandonedError):
            assert not (to / "mirror.json").exists()
        else:
            assert receiver.committed
        outside = {p for p in listing(around) if p != "m" and not p.startswith("m/")}
        assert not outside
        assert all(
            p == "m" or p.startswith(("m/.", "m/memory", "m/mirror.json")) for p in listing(around)
        )
        receiver.discard()


SLOW = settings(
    max_examples=int(os.environ.get("REDIRTY_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@SLOW
@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    serve(data)
    serve(hello() + data)
    serve(hello() + source_frame() + data)


@SLOW
@given(st.integers(0, len(whole()) - 1), st.integers(0, 255), st.integers(1, 40))
def test_damaged_frames_are_refused(at: int, byte: int, length: int) -> None:
    data = bytearray(whole())
    data[at : at + length] = bytes([byte]) * len(data[at : at + length])
    serve(bytes(data))


@SLOW
@given(st.integers(0, len(whole())))
def test_truncated_input_is_refused(size: int) -> None:
    serve(whole()[:size])


NUMBERS = st.one_of(
    st.integers(0, 50), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 52, (1 << 52) - 1])
)


@SLOW
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [protocol.PAGES, protocol.ZERO, protocol.SOURCE, protocol.FLUSH, protocol.DIGEST]
            ),
            st.integers(0, 3),
            st.integers(0, 3),
            st.lists(st.tuples(NUMBERS, st.integers(0, (1 << 32) - 1)), max_size=4),
            st.integers(0, 3),
        ),
        max_size=8,
    )
)
def test_frames_in_any_order_do_no_harm(
    found: list[tuple[int, int, int, list[tuple[int, int]], int]],
) -> None:
    data = hello() + source_frame()
    number = 1
    for kind, flags, source, runs, pages in found:
        number += 1
        firsts = np.array([r[0] for r in runs], np.uint64)
        lengths = np.array([r[1] for r in runs], np.uint64)
        payload = bytes(range(256)) * 16 * pages
        data += protocol.head(
            kind, flags=flags, source=source, number=number, runs=len(runs), payload=len(payload)
        )
        data += protocol.pack_runs(firsts, lengths) + payload
    serve(data)


WORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@SLOW
@example([], float("inf"))
@example([[1, 2, "", "", None, 0]], None)
@example([[1, 2, "r", "", None, 0]], None)
@given(WORDS, WORDS)
def test_invalid_layouts_are_refused(mappings: object, process: object) -> None:
    for processes in (
        mappings,
        [process],
        [{"pid": process, "source": 1, "zero": [], "mappings": []}],
        [{"pid": 1, "source": 1, "zero": [], "mappings": mappings}],
        [{"pid": 1, "source": 1, "zero": process, "mappings": []}],
        [{"pid": 1, "source": 1, "zero": [], "mappings": [[1, 2, "r--p", "", process, 0]]}],
    ):
        layout = json.dumps({"machine": 62, "processes": processes}).encode()
        data = hello() + source_frame() + pages_frame(2, [16], [1], b"a" * PAGE)
        data += protocol.head(protocol.PART, payload=len(layout)) + layout
        data += protocol.head(protocol.PART, number=1, payload=1) + b"n"
        words = b'{"information": {}}'
        serve(data + protocol.head(protocol.COMMIT, payload=len(words)) + words)


@pytest.mark.parametrize(
    ("runs", "payload"), [(protocol.MAX_RUNS + 1, 0), (0, protocol.MAX_PAYLOAD + 1)]
)
def test_sizes_are_bounded_before_anything_is_allocated(runs: int, payload: int) -> None:
    with pytest.raises(FrameError, match="too large"):
        protocol.parse_head(protocol.head(protocol.PAGES, runs=runs, payload=payload))


def test_a_session_resumes_and_no_other_one(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "m")
    with pytest.raises(ConnectionLostError):
        receiver.serve(Tape(hello() + source_frame()))
    tape = Tape(hello("another-session-0"))
    with pytest.raises(FrameError):
        receiver.serve(tape)
    assert b"another mirror" in tape.answers
    resumed = Tape(hello() + pages_frame(3, [16], [1], b"a" * PAGE))
    with pytest.raises(AbandonedError, match="violates the protocol: frame 2 is missing"):
        receiver.serve(resumed)
    assert b'{"done": 1,' in resumed.answers and b"frame 2 is missing" in resumed.answers
    assert not (tmp_path / "m").exists()


def test_compressed_pages_are_stored_decompressed(tmp_path: Path) -> None:
    contents = bytes(range(256)) * 16 * 3
    small = bytes(compress(memoryview(contents)))
    assert len(small) < len(contents) // 4
    head = protocol.head(
        protocol.PAGES, flags=protocol.COMPRESSED, source=1, number=2, runs=1, payload=len(small)
    )
    runs = protocol.pack_runs(np.array([16], np.uint64), np.array([3], np.uint64))
    receiver = Receiver(tmp_path / "m", None, decompress)
    with pytest.raises(ConnectionLostError):
        receiver.serve(Tape(hello() + source_frame() + head + runs + small))
    assert receiver.image is not None
    buffer = memoryview(bytearray(3 * PAGE))
    one: U64 = np.array([16], np.uint64)
    receiver.image.stores[1].read_into(one, np.array([3], np.uint64), buffer)
    assert bytes(buffer) == contents
    receiver.discard()


def test_runs_are_cut_to_the_limits_of_frames() -> None:
    firsts, lengths = np.array([5, 1 << 30], np.uint64), np.array([3, 1_000_000], np.uint64)
    parts = protocol.cut(firsts, lengths)
    found = [(int(f), int(n)) for fs, ns in parts for f, n in zip(fs, ns, strict=True)]
    assert sum(n for _, n in found) == 1_000_003
    assert found[0] == (5, 3)
    at = 1 << 30
    for first, length in found[1:]:
        assert first == at and length <= 1 << 18
        at += length
