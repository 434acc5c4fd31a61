"""The other end: takes frames, puts pages into an image, acknowledges, commits.

What comes is checked as if an enemy had sent it: sizes against limits, order against the sequence, names
not at all, for none are taken. A connection that breaks can be made again by the same session.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from redirty.collector.errors import RedirtyError, why
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.image.commit import PlacedProcess, commit
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.page_store import StoreError
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.protocol import FrameError, Head

log = logging.getLogger(__name__)

_KINDS = (SPACE, FILE)
_MOST_JSON = 1 << 20


class Stream(Protocol):
    """A connected socket."""

    def recv_into(self, buffer: memoryview, /) -> int: ...

    def sendall(self, data: bytes, /) -> None: ...


class LostError(Exception):
    """The connection broke; the sender may come back."""


class AbandonedError(RedirtyError):
    """The sender gave the mirror up, or it cannot be made."""


class Receiver:
    """One mirror, over one connection or several. open_image(session): called at the first HELLO, or with
    what is in the directory already taken as given. decompress(data, size)."""

    def __init__(
        self,
        directory: Path,
        image: Image | None = None,
        decompress: Callable[[memoryview, int], memoryview] | None = None,
    ) -> None:
        self.directory = directory
        self.image = image
        self.committed = False
        self._done = 0 if image is None else image.done
        self._decompress = decompress
        self._buffer = memoryview(bytearray(protocol.MOST_PAYLOAD + protocol.MOST_RUNS * 12))
        self._parts: list[bytearray] = []

    def serve(self, stream: Stream) -> None:
        """Until the commit.

        Errors: LostError; AbandonedError; FrameError when what comes is none of ours.
        """
        self._parts = []
        greeted = False
        while not self.committed:
            head, body = self._read(stream)
            if not greeted:
                self._greet(stream, head, body)
                greeted = True
                continue
            try:
                self._take(stream, head, body)
            except OSError as e:
                self._fail(stream, f"cannot write to {self.directory}: {why(e)}")
            except StoreError as e:
                self._fail(stream, f"what was sent cannot be stored: {e}")
            except AbandonedError:
                raise
            except RedirtyError as e:
                self._fail(stream, str(e))

    def _fail(self, stream: Stream, reason: str) -> None:
        """There will be no mirror; the sender is told."""
        self.discard()
        self._send(stream, protocol.ERROR, payload=reason.encode()[:4096])
        raise AbandonedError(f"{reason}; there is no mirror")

    def discard(self) -> None:
        """What came is removed."""
        if self.image is not None and not self.committed:
            self.image.discard()

    # ---- the wire ----

    def _exactly(self, stream: Stream, view: memoryview) -> None:
        at = 0
        while at < len(view):
            try:
                got = stream.recv_into(view[at:])
            except OSError as e:
                raise LostError(why(e)) from None
            if got == 0:
                raise LostError("it was closed at the other end")
            at += got

    def _read(self, stream: Stream) -> tuple[Head, memoryview]:
        start = self._buffer[: protocol.HEAD.size]
        self._exactly(stream, start)
        head = protocol.parse_head(start)
        body = self._buffer[: head.body]
        self._exactly(stream, body)
        return head, body

    def _send(self, stream: Stream, kind: int, *, number: int = 0, payload: bytes = b"") -> None:
        try:
            stream.sendall(protocol.head(kind, number=number, payload=len(payload)) + payload)
        except OSError as e:
            if kind != protocol.ERROR:
                raise LostError(why(e)) from None

    # ---- frames ----

    def _greet(self, stream: Stream, head: Head, body: memoryview) -> None:
        if head.type != protocol.HELLO or head.payload > _MOST_JSON or head.runs:
            raise FrameError("it does not begin as a mirror does")
        hello = _json(body)
        session = str(hello.get("session", ""))
        if hello.get("version") != protocol.VERSION or not 16 <= len(session) <= 64:
            raise FrameError("the other end speaks another version")
        if self.image is None:
            self.image = Image.create(self.directory, session)
        elif self.image.session != session:
            self._send(stream, protocol.ERROR, payload=b"it waits for the sender of another mirror")
            raise FrameError("another mirror's sender")
        self._send(stream, protocol.WELCOME, payload=json.dumps({"done": self._done}).encode())

    def _take(self, stream: Stream, head: Head, body: memoryview) -> None:
        assert self.image is not None
        if head.type in (protocol.SOURCE, protocol.PAGES, protocol.ZERO):
            if head.number > self._done:
                if head.number != self._done + 1:
                    raise FrameError("a frame is missing")
                self._change(self.image, head, body)
                self._done = head.number
                self.image.journal.done(head.number)
            self._send(stream, protocol.ACK, number=self._done)
        elif head.type == protocol.FLUSH:
            self._send(stream, protocol.ACK, number=self._done)
        elif head.type == protocol.DIGEST:
            self._send(stream, protocol.ANSWER, payload=self.image.digest().encode())
        elif head.type == protocol.PART:
            self._part(head, body)
        elif head.type == protocol.COMMIT:
            self._commit(stream, _json(body[: _at_most(head.payload)]))
        elif head.type == protocol.ABANDON:
            self.discard()
            raise AbandonedError("the sender gave up: there is no mirror")
        else:
            raise FrameError("a frame of no type")

    def _change(self, image: Image, head: Head, body: memoryview) -> None:
        if head.type == protocol.SOURCE:
            if head.runs or head.payload or head.flags >= len(_KINDS):
                raise FrameError("a source of no kind")
            image.declare(head.source, _KINDS[head.flags])
            return
        if head.source not in image.stores:
            raise FrameError("pages of no source")
        firsts, lengths = protocol.parse_runs(body, head.runs)
        if head.type == protocol.ZERO:
            if head.payload:
                raise FrameError("zero pages with contents")
            image.zero(head.source, firsts, lengths)
            return
        size = int(lengths.sum()) * PAGE
        if not 0 < size <= protocol.MOST_PAYLOAD:
            raise FrameError("more pages than a frame may have")
        data = body[head.runs * protocol.RUN.itemsize :]
        if head.flags & protocol.COMPRESSED:
            if self._decompress is None:
                raise FrameError("compressed pages")
            data = self._decompress(data, size)
        if len(data) != size:
            raise FrameError("pages without contents")
        image.write(head.source, firsts, lengths, data)

    def _part(self, head: Head, body: memoryview) -> None:
        """Mappings and notes come in pieces, before the commit. number: which one it belongs to."""
        if head.runs or head.number > len(self._parts) or head.number >= protocol.MOST_RUNS * 16:
            raise FrameError("a part of nothing")
        if sum(map(len, self._parts)) + len(body) > protocol.MOST_PARTS:
            raise FrameError("more mappings than a mirror may have")
        if head.number == len(self._parts):
            self._parts.append(bytearray())
        self._parts[head.number] += body

    def _commit(self, stream: Stream, told: dict[str, Any]) -> None:
        assert self.image is not None
        try:
            layout = _json(memoryview(self._parts[0]))
            processes = [
                PlacedProcess.from_json(fields, bytes(self._parts[1 + i]))
                for i, fields in enumerate(layout["processes"])
            ]
            machine, information = int(layout["machine"]), dict(told["information"])
            reserved = {"state", "cores"} & information.keys()
            if reserved or not 0 <= machine < 1 << 16:
                raise ValueError("what only a receiver says")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as e:
            raise FrameError(f"mappings that are none: {e}") from None
        commit(self.image, processes, machine, information)
        self.committed = True
        try:
            self._send(stream, protocol.ANSWER, payload=b"committed")
        except LostError:
            log.info("the sender did not wait to hear that it is committed")


def _at_most(size: int) -> int:
    if size > _MOST_JSON:
        raise FrameError("more words than a mirror needs")
    return size


def _json(body: memoryview) -> dict[str, Any]:
    """Errors: FrameError."""
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError) as e:
        raise FrameError(f"no JSON: {e}") from None
    if not isinstance(found, dict):
        raise FrameError("no JSON object")
    return found


def decompress(data: memoryview, size: int) -> memoryview:
    """Contents that were compressed with zstd. Errors: FrameError."""
    import pyarrow as pa

    try:
        return memoryview(pa.decompress(data, size, "zstd"))
    except (OSError, pa.ArrowException) as e:
        raise FrameError(f"compressed pages that are none: {e}") from None


def compress(data: memoryview) -> memoryview:
    """Contents with zstd, at its quickest."""
    import pyarrow as pa

    codec = pa.Codec("zstd", compression_level=1)
    return memoryview(codec.compress(np.frombuffer(data, np.uint8), asbytes=True))
