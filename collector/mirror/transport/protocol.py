"""The frames of a mirror's connection: their layout, and the limits that a receiver enforces.

A frame is a fixed-size head, then runs of pages (first page, number of pages), then a payload. Every size is
checked against a limit before anything is allocated for it.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from redirty.collector.mirror.image.page_store import MAX_PAGE, WINDOW_PAGES
from redirty.collector.pageset import U64

VERSION = 1
_MAGIC = b"RDM1"
_SESSION = re.compile(r"[0-9A-Za-z-]{16,64}")
# magic, type, flags, source, sequence number, runs, bytes of payload
HEAD = struct.Struct("<4sBBxxIQII")
SEED = struct.Struct("<Q")  # the payload of a DIGEST of hashes
RUN = np.dtype([("first", "<u8"), ("length", "<u4")])

HELLO, SOURCE, PAGES, ZERO, FLUSH, DIGEST, PART, COMMIT, ABANDON = range(1, 10)  # to the receiver
WELCOME, ACK, ANSWER, ERROR = range(32, 36)  # to the sender
MEET = 36  # to anybody who connects: where ends on one machine meet
COMPRESSED = 1  # a flag of PAGES

# What a receiver takes from a sender, checked before any work; docs/mirror-protocol.md lists them.
MAX_RUNS = 4096
MAX_PAYLOAD = (4 << 20) + (64 << 10)
MAX_HELLO = 4096
MAX_PARTS_BYTES = 64 << 20  # of mappings and notes
MAX_PARTS = 1 << 14  # processes, and one more
MAX_PLACES = 1 << 19  # mappings, runs of zero pages and processes
MAX_INFORMATION = 1 << 20
MAX_DIGESTS = 64
# What a sender takes from a receiver.
MAX_ANSWER = 64 << 10


class FrameError(Exception):
    """An invalid or forbidden frame: the connection cannot be used any further."""


class ConnectionLostError(Exception):
    """The connection to the peer is lost; the sender may connect again.

    A sender has to send again what was not acknowledged.
    """


@dataclass(frozen=True)
class Head:
    """The head of a frame.

    Attributes:
        type: one of the frame types of this module.
        flags: bits that depend on the type.
        source: the number of the source that the pages belong to.
        number: the sequence number, or the part's index for PART.
        runs: number of runs that follow.
        payload: bytes that follow the runs.
    """

    type: int
    flags: int
    source: int
    number: int
    runs: int
    payload: int

    @property
    def body(self) -> int:
        """Bytes after the head."""
        return self.runs * RUN.itemsize + self.payload


def head(
    kind: int, *, flags: int = 0, source: int = 0, number: int = 0, runs: int = 0, payload: int = 0
) -> bytes:
    """Return the packed head of a frame."""
    return HEAD.pack(_MAGIC, kind, flags, source, number, runs, payload)


def parse_head(data: bytes | memoryview) -> Head:
    """Parse the head of a frame and check its sizes.

    Raises:
        FrameError: the magic number is wrong, or the frame is too large.
    """
    magic, kind, flags, source, number, runs, payload = HEAD.unpack(data)
    if magic != _MAGIC:
        raise FrameError("wrong magic number: the peer does not speak the mirror protocol")
    if runs > MAX_RUNS or payload > MAX_PAYLOAD:
        raise FrameError("frame too large")
    return Head(kind, flags, source, number, runs, payload)


def parse_json(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        FrameError: invalid JSON, or not an object.
    """
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError) as e:
        raise FrameError(f"invalid JSON: {e}") from None
    if not isinstance(found, dict):
        raise FrameError("invalid JSON: not an object")
    return found


def require_hello(head: Head) -> None:
    """Require that a frame may be a greeting.

    Raises:
        FrameError: it is another frame, or too large.
    """
    if head.type != HELLO or head.payload > MAX_HELLO or head.runs:
        raise FrameError("expected HELLO")


def parse_hello(body: bytes | memoryview) -> str:
    """Return the session of a greeting.

    Raises:
        FrameError: the greeting is invalid, or of another version.
    """
    hello = parse_json(body)
    session = hello.get("session")
    if hello.get("version") != VERSION:
        raise FrameError("the sender speaks another version of the protocol")
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        raise FrameError("invalid name of a session")
    return session


def parse_seed(body: bytes | memoryview) -> int | None:
    """Return the seed of a DIGEST; None: it is of the contents.

    Raises:
        FrameError: the payload has another size.
    """
    if len(body) == 0:
        return None
    if len(body) != SEED.size:
        raise FrameError("invalid DIGEST")
    return int(SEED.unpack(body)[0])


def pack_runs(firsts: U64, lengths: U64) -> bytes:
    """Return runs of pages in wire format."""
    runs = np.empty(len(firsts), RUN)
    runs["first"], runs["length"] = firsts, lengths
    return runs.tobytes()


def parse_runs(data: memoryview, count: int) -> tuple[U64, U64]:
    """Return the first pages and the lengths of `count` runs.

    Raises:
        FrameError: a run is empty, too long, or outside of every address space.
    """
    runs = np.frombuffer(data, RUN, count)
    firsts, lengths = runs["first"].astype(np.uint64), runs["length"].astype(np.uint64)
    if count and (int(firsts.max()) >= MAX_PAGE or int(lengths.max()) > WINDOW_PAGES):
        raise FrameError("page number or run length out of range")
    if count and int(lengths.min()) == 0:
        raise FrameError("empty page run")
    return firsts, lengths


def cut(firsts: U64, lengths: U64) -> list[tuple[U64, U64]]:
    """Split runs into groups that respect a frame's limits on run length and number of runs."""
    limit = np.uint64(WINDOW_PAGES)
    if len(lengths) and int(lengths.max()) > WINDOW_PAGES:
        counts = (-(-lengths.astype(np.int64) // WINDOW_PAGES)).astype(np.int64)
        index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        done = index.astype(np.uint64) * limit
        firsts = np.repeat(firsts, counts) + done
        lengths = np.minimum(np.repeat(lengths, counts) - done, limit)
    return [
        (firsts[at : at + MAX_RUNS], lengths[at : at + MAX_RUNS])
        for at in range(0, len(firsts), MAX_RUNS)
    ]
