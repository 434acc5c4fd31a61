"""The receiver's half of the mirror protocol: stores pages in an image, acknowledges, commits.

All input is untrusted: sizes are checked against limits, frames against the sequence, and no file names are
taken from the sender. The same session can resume after its connection was lost.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.commit import commit
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.page_store import StoreError
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.layout import parse_layout
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError, Head
from redirty.collector.pageset import PAGE_SIZE

log = logging.getLogger(__name__)

_KINDS = (SPACE, FILE)
_MAX_REASON = 4096


class Stream(Protocol):
    """A connected socket."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read at least one byte; 0 means that the peer closed the connection."""

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes."""


class AbandonedError(RedirtyError):
    """The mirror was discarded: the sender abandoned it, or it cannot be stored."""


class Receiver:
    """Receives one mirror, over one connection or several.

    Attributes:
        directory: where the mirror is made.
        image: its pages; None before the first greeting.
        committed: the mirror is complete.
    """

    def __init__(
        self,
        directory: Path,
        image: Image | None = None,
        decompress: Callable[[memoryview, int], memoryview] | None = None,
    ) -> None:
        """Prepare to receive a mirror.

        Args:
            directory: a new directory, or that of `image`.
            image: the image of a receiver that was killed; None: created at the first greeting.
            decompress: decompresses pages to a size; None: compressed pages are refused.
        """
        self.directory = directory
        self.image = image
        self.committed = False
        self._done = 0 if image is None else image.done
        self._decompress = decompress
        self._buffer = memoryview(bytearray(protocol.MAX_PAYLOAD + protocol.MAX_RUNS * 12))
        self._parts: list[bytearray] = []
        self._parts_bytes = 0
        self._digests = 0
        self._digest: dict[int | None, str] = {}  # of the contents as they are, by seed

    def serve(self, stream: Stream) -> None:
        """Serve a connection until the mirror is committed.

        Raises:
            ConnectionLostError: the connection is lost; its session may resume.
            AbandonedError: the mirror was discarded, as the sender wanted, or because it violates the protocol.
            FrameError: this is not the sender of this mirror.
        """
        self._parts, self._parts_bytes = [], 0
        self._greet(stream, *self._read(stream))
        while not self.committed:
            try:
                self._process(stream, *self._read(stream))
            except FrameError as e:
                self._fail(stream, f"the sender violates the protocol: {e}")
            except OSError as e:
                self._fail(stream, f"cannot write to {self.directory}: {why(e)}")
            except StoreError as e:
                self._fail(stream, f"cannot store the mirror: {e}")
            except AbandonedError:
                raise
            except RedirtyError as e:
                self._fail(stream, str(e))

    def _fail(self, stream: Stream, reason: str) -> NoReturn:
        """Discard the mirror, and report the reason to the sender."""
        self.discard()
        self._send(stream, protocol.ERROR, payload=reason.encode()[:_MAX_REASON])
        raise AbandonedError(f"{reason}; the mirror was discarded")

    def discard(self) -> None:
        """Remove what was received, unless it is committed."""
        if self.image is not None and not self.committed:
            self.image.discard()

    # ---- the wire ----

    def _read_exactly(self, stream: Stream, view: memoryview) -> None:
        at = 0
        while at < len(view):
            try:
                got = stream.recv_into(view[at:])
            except OSError as e:
                raise ConnectionLostError(why(e)) from None
            if got == 0:
                raise ConnectionLostError("closed by the sender")
            at += got

    def _read(self, stream: Stream) -> tuple[Head, memoryview]:
        start = self._buffer[: protocol.HEAD.size]
        self._read_exactly(stream, start)
        head = protocol.parse_head(start)
        body = self._buffer[: head.body]
        self._read_exactly(stream, body)
        return head, body

    def _send(self, stream: Stream, kind: int, *, number: int = 0, payload: bytes = b"") -> None:
        try:
            stream.sendall(protocol.head(kind, number=number, payload=len(payload)) + payload)
        except OSError as e:
            if kind != protocol.ERROR:
                raise ConnectionLostError(why(e)) from None

    # ---- frames ----

    def _greet(self, stream: Stream, head: Head, body: memoryview) -> None:
        protocol.require_hello(head)
        session = protocol.parse_hello(body)
        if self.image is None:
            self.image = Image.create(self.directory, session)
        elif self.image.session != session:
            self._send(
                stream, protocol.ERROR, payload=b"it is waiting for the sender of another mirror"
            )
            raise FrameError("this is the sender of another mirror")
        welcome = {"done": self._done, "hashes": True}
        self._send(stream, protocol.WELCOME, payload=json.dumps(welcome).encode())

    def _process(self, stream: Stream, head: Head, body: memoryview) -> None:
        assert self.image is not None
        if head.type in (protocol.SOURCE, protocol.PAGES, protocol.ZERO):
            if head.number > self._done:
                if head.number != self._done + 1:
                    raise FrameError(f"frame {self._done + 1} is missing")
                self._digest = {}
                self._apply(self.image, head, body)
                self._done = head.number
                self.image.journal.done(head.number)
            self._send(stream, protocol.ACK, number=self._done)
        elif head.type == protocol.FLUSH:
            self._send(stream, protocol.ACK, number=self._done)
        elif head.type == protocol.DIGEST:
            digest = self._digest_of(self.image, protocol.parse_seed(body))
            self._send(stream, protocol.ANSWER, payload=digest.encode())
        elif head.type == protocol.PART:
            self._add_part(head, body)
        elif head.type == protocol.COMMIT:
            if head.runs or head.payload > protocol.MAX_INFORMATION:
                raise FrameError("COMMIT too large")
            self._commit(stream, protocol.parse_json(body))
        elif head.type == protocol.ABANDON:
            self.discard()
            raise AbandonedError("the sender gave up; the mirror was discarded")
        else:
            raise FrameError(f"unknown frame type {head.type}")

    def _apply(self, image: Image, head: Head, body: memoryview) -> None:
        """Apply a frame that changes the image."""
        if head.type == protocol.SOURCE:
            if head.runs or head.payload or head.flags >= len(_KINDS):
                raise FrameError("unknown kind of source")
            image.declare(head.source, _KINDS[head.flags])
            return
        if head.source not in image.stores:
            raise FrameError("pages of an undeclared source")
        firsts, lengths = protocol.parse_runs(body, head.runs)
        if head.type == protocol.ZERO:
            if head.payload:
                raise FrameError("zero pages with a payload")
            image.zero(head.source, firsts, lengths)
            return
        size = int(lengths.sum()) * PAGE_SIZE
        if not 0 < size <= protocol.MAX_PAYLOAD:
            raise FrameError("no pages, or more than a frame can hold")
        data = body[head.runs * protocol.RUN.itemsize :]
        if head.flags & protocol.COMPRESSED:
            if self._decompress is None:
                raise FrameError("compressed pages are not accepted")
            data = self._decompress(data, size)
        if len(data) != size:
            raise FrameError("the payload is not as large as the pages")
        image.write(head.source, firsts, lengths, data)

    def _digest_of(self, image: Image, seed: int | None) -> str:
        """Return the digest of the contents, which takes as long as reading them."""
        if seed not in self._digest:
            self._digests += 1
            if self._digests > protocol.MAX_DIGESTS:
                raise FrameError(f"more than {protocol.MAX_DIGESTS} digests")
            self._digest[seed] = image.digest(seed)
        return self._digest[seed]

    def _add_part(self, head: Head, body: memoryview) -> None:
        """Collect a piece of the mappings (part 0) or of a process's notes (the others)."""
        if head.runs or head.number > len(self._parts) or head.number > protocol.MAX_PARTS:
            raise FrameError("part number out of sequence")
        self._parts_bytes += len(body)
        if self._parts_bytes > protocol.MAX_PARTS_BYTES:
            raise FrameError("mappings and notes too large")
        if head.number == len(self._parts):
            self._parts.append(bytearray())
        self._parts[head.number] += body

    def _commit(self, stream: Stream, request: dict[str, Any]) -> None:
        assert self.image is not None
        try:
            machine, processes = parse_layout(self._parts)
            information = request["information"]
            if not isinstance(information, dict) or {"state", "cores"} & information.keys():
                raise ValueError("state and cores are set by the receiver")
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise FrameError(f"invalid mappings: {e}") from None
        commit(self.image, processes, machine, information)
        self.committed = True
        try:
            self._send(stream, protocol.ANSWER, payload=b"committed")
        except ConnectionLostError:
            log.info("committed, but the sender closed the connection before the confirmation")
