"""The frames of a mirror's connection: how they look, and what a receiver takes.

Each has a head of set size, then runs of pages (first page, how many), then a payload. Every size is
checked against a limit before anything is allocated for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from redirty.collector.mirror.image.page_store import MOST_PAGE, WINDOW_PAGES
from redirty.collector.pageset import U64

VERSION = 1
_MAGIC = b"RDM1"
# magic, type, flags, source, sequence number, runs, bytes of payload
HEAD = struct.Struct("<4sBBxxIQII")
RUN = np.dtype([("first", "<u8"), ("length", "<u4")])

HELLO, SOURCE, PAGES, ZERO, FLUSH, DIGEST, PART, COMMIT, ABANDON = range(1, 10)  # to the receiver
WELCOME, ACK, ANSWER, ERROR = range(32, 36)  # to the sender
COMPRESSED = 1  # a flag of PAGES

MOST_RUNS = 4096
MOST_PAYLOAD = (4 << 20) + (64 << 10)
MOST_PARTS = 64 << 20  # bytes of mappings and notes


class FrameError(Exception):
    """Not a frame, or one that is not allowed: the connection is of no use any more."""


@dataclass(frozen=True)
class Head:
    """What a frame says of itself."""

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
    """A frame's first bytes."""
    return HEAD.pack(_MAGIC, kind, flags, source, number, runs, payload)


def parse_head(data: bytes | memoryview) -> Head:
    """Errors: FrameError."""
    magic, kind, flags, source, number, runs, payload = HEAD.unpack(data)
    if magic != _MAGIC:
        raise FrameError("this is no mirror's connection")
    if runs > MOST_RUNS or payload > MOST_PAYLOAD:
        raise FrameError("a frame that is too large")
    return Head(kind, flags, source, number, runs, payload)


def pack_runs(firsts: U64, lengths: U64) -> bytes:
    """Runs, as they go over the wire."""
    runs = np.empty(len(firsts), RUN)
    runs["first"], runs["length"] = firsts, lengths
    return runs.tobytes()


def parse_runs(data: memoryview, count: int) -> tuple[U64, U64]:
    """First pages and lengths. Errors: FrameError."""
    runs = np.frombuffer(data, RUN, count)
    firsts, lengths = runs["first"].astype(np.uint64), runs["length"].astype(np.uint64)
    if count and (int(firsts.max()) >= MOST_PAGE or int(lengths.max()) > WINDOW_PAGES):
        raise FrameError("pages that no address has")
    if count and int(lengths.min()) == 0:
        raise FrameError("a run of no pages")
    return firsts, lengths


def cut(firsts: U64, lengths: U64) -> list[tuple[U64, U64]]:
    """Runs in parts that frames may have."""
    most = np.uint64(WINDOW_PAGES)
    if len(lengths) and int(lengths.max()) > WINDOW_PAGES:
        counts = (-(-lengths.astype(np.int64) // WINDOW_PAGES)).astype(np.int64)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begun = within.astype(np.uint64) * most
        firsts = np.repeat(firsts, counts) + begun
        lengths = np.minimum(np.repeat(lengths, counts) - begun, most)
    return [
        (firsts[at : at + MOST_RUNS], lengths[at : at + MOST_RUNS])
        for at in range(0, len(firsts), MOST_RUNS)
    ]
