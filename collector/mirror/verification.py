"""Compares a mirror with what was sent: after the target was resumed, before the mirror is committed.

The sender has kept a hash of the contents of each page that it read last. The other end reads what it has stored and
hashes it with the same key; both digest all hashes with their places. Equal digests prove that the mirror has, for
each page and nothing else, what was read of it. That a page was not written after that is what tracing says: a page
that a device or a process outside the target changed behind its back shows in a full comparison only.
"""

from __future__ import annotations

import time

import numpy as np
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.image.digest import CHUNK_PAGES, HashDigest, digest_of
from redirty.collector.mirror.running import RunningMirror
from redirty.collector.mirror.sources.page_hashes import SEED
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import PAGE_SIZE, U64
from redirty.collector.units import show_bytes, show_time

_ATTEMPTS = 3
_SAMPLE_PAGES = 4 * CHUNK_PAGES


def require_hashes(sink: PageSink) -> None:
    """Require that the other end can digest hashes.

    Raises:
        RedirtyError: it is of an older version.
    """
    if not sink.hashes:
        raise RedirtyError(
            "cannot verify what is sent: redirty receive is of an older version, which cannot hash its pages; use "
            "the same version at both ends, or --verify=full, which stops the target for as long as it reads all memory"
        )


def compare_with_sent(mirror: RunningMirror) -> str:
    """Compare the mirror with what was sent, and return the digest of both.

    Everything has to be acknowledged, and nothing may be sent meanwhile.

    Raises:
        RedirtyError: they differ, or the connection cannot be re-established.
    """
    theirs = _theirs(mirror)
    expected = HashDigest()
    for source in mirror.state.sources():
        for pages, hashes in source.sent.sent():
            expected.add(source.number, pages, hashes)
    if theirs != expected.hex():
        raise RedirtyError(
            "the mirror differs from what was sent: its disk, its memory or the way there changed it; the target "
            "keeps running, the mirror was discarded"
        )
    return theirs


def full_comparison_note(size: int, goal_s: float | None) -> str:
    """Say, before anything begins, for how long a full comparison will stop the target.

    Args:
        size: bytes of memory.
        goal_s: the downtime asked for; None: none was.
    """

    def fill(pages: U64, buffer: memoryview) -> None:
        buffer[:] = b"x" * len(buffer)

    started = time.monotonic()
    digest_of([(1, np.arange(_SAMPLE_PAGES, dtype=np.uint64), fill)])
    one_s = (time.monotonic() - started) * size / (_SAMPLE_PAGES * PAGE_SIZE)
    beyond = "" if goal_s is None else f", beyond the downtime of {show_time(goal_s)}"
    return (
        f"--verify=full reads all memory ({show_bytes(size)}) at both ends while the target is stopped, for "
        f"{show_time(2 * one_s)} or so{beyond}; --verify compares what was sent, and stops it no longer"
    )


def _theirs(mirror: RunningMirror) -> str:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return mirror.sink.digest(SEED)
        except ConnectionLostError as e:
            if attempt == _ATTEMPTS:
                raise RedirtyError(
                    f"connection lost while the mirror was verified: {e}; the target keeps running, the mirror was "
                    "discarded"
                ) from None
            mirror.reconnect(e)
            if mirror.state.left_bytes():  # a receiver that has lost what it had acknowledged
                raise RedirtyError(
                    "the receiver lost pages that it had acknowledged; the target keeps running, the mirror was "
                    "discarded"
                ) from None
    raise AssertionError
