"""A sink that writes pages to a local directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.commit import commit
from redirty.collector.mirror.image.image import Image
from redirty.collector.mirror.image.page_store import StoreError
from redirty.collector.mirror.image.process_image import PlacedProcess
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.pageset import U64, PageSet


class LocalSink:
    """A PageSink in a directory of this machine: a receiver's image without a connection."""

    def __init__(self, image: Image, rate_limiter: RateLimiter) -> None:
        self._image = image
        self._rate_limiter = rate_limiter
        self.sent_bytes = 0
        self.deadline: float | None = None

    def declare(self, number: int, kind: str) -> None:
        """See PageSink."""
        with _store_errors(self._image):
            self._image.declare(number, kind)

    def write(
        self, number: int, firsts: U64, lengths: U64, data: memoryview, raw_bytes: int
    ) -> None:
        """See PageSink."""
        piece = self._rate_limiter.piece
        for at in range(0, len(data), piece):
            self._rate_limiter.wait(min(piece, len(data) - at))
        with _store_errors(self._image):
            self._image.write(number, firsts, lengths, data)
        self.sent_bytes += len(data)

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """See PageSink."""
        with _store_errors(self._image):
            self._image.zero(number, firsts, lengths)

    def flush(self) -> None:
        """Return immediately: everything is stored already."""

    def reconnect(self) -> list[tuple[int, PageSet]]:
        """Return no pages: there is no connection that could be lost."""
        return []

    @property
    def hashes(self) -> bool:
        """Return True: the other end is this one."""
        return True

    def digest(self, seed: int | None = None) -> str:
        """See PageSink."""
        with _store_errors(self._image):
            return self._image.digest(seed)

    def commit(
        self, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
    ) -> None:
        """See PageSink."""
        with _store_errors(self._image):
            commit(self._image, processes, machine, information)

    def close(self) -> None:
        """See PageSink."""
        if not self._image.committed:
            self._image.discard()


@contextlib.contextmanager
def _store_errors(image: Image) -> Iterator[None]:
    """Translate the errors of a full disk and of an image's limits into a RedirtyError."""
    try:
        yield
    except OSError as e:
        raise RedirtyError(
            f"cannot write to {image.directory}: {why(e)}; the mirror was discarded"
        ) from None
    except StoreError as e:
        raise RedirtyError(f"cannot mirror this target: {e}") from None
