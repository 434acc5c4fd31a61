"""A base of what tests use in a `with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """An object whose close() is called at the end of its `with` block."""

    def close(self) -> None:
        """Release everything; every subclass has its own."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
