"""Write pages to an image of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.commit import PlacedProcess, commit
from redirty.collector.mirror.image.image import Image
from redirty.collector.mirror.image.page_store import StoreError
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.pageset import U64, PageSet


class LocalSink:
    """A directory of this machine: the receiver's image without a connection."""

    def __init__(self, image: Image, pace: RateLimiter) -> None:
        self._image = image
        self._pace = pace
        self.sent_bytes = 0
        self.breaks = 0
        self.deadline: float | None = None

    def declare(self, number: int, kind: str) -> None:
        """See Sink."""
        with _store_errors(self._image):
            self._image.declare(number, kind)

    def write(self, number: int, firsts: U64, lengths: U64, data: memoryview, raw: int) -> None:
        """See Sink."""
        piece = self._pace.piece
        for at in range(0, len(data), piece):
            self._pace.wait(min(piece, len(data) - at))
        with _store_errors(self._image):
            self._image.write(number, firsts, lengths, data)
        self.sent_bytes += len(data)

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """See Sink."""
        with _store_errors(self._image):
            self._image.zero(number, firsts, lengths)

    def flush(self) -> None:
        """See Sink: it is there."""

    def reconnect(self) -> list[tuple[int, PageSet]]:
        """See Sink: nothing breaks."""
        return []

    def digest(self) -> str:
        """See Sink."""
        with _store_errors(self._image):
            return self._image.digest()

    def commit(
        self, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
    ) -> None:
        """See Sink."""
        with _store_errors(self._image):
            commit(self._image, processes, machine, information)

    def close(self) -> None:
        """See Sink."""
        if not self._image.committed:
            self._image.discard()


class _store_errors:  # noqa: N801 - reads as a word
    """What a full disk or an impossible request is told as."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise RedirtyError(
                f"cannot write to {self._image.directory}: {why(error)}; there is no mirror"
            ) from None
        if isinstance(error, StoreError):
            raise RedirtyError(f"cannot mirror this: {error}") from None
