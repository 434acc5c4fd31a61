"""A rate limiter for outgoing bytes, which catches up after late wake-ups of up to 20 ms."""

from __future__ import annotations

import time
from collections.abc import Callable

from redirty.collector.pageset import PAGE_SIZE

_CATCH_UP_S = 0.02  # how far the limiter may be behind and still catch up
PIECE_S = 0.004  # at the limit, the longest time that one piece takes
_CHECK_S = 0.25  # long sleeps are interrupted this often to check for a cancellation


class RateLimiter:
    """Paces outgoing bytes.

    Attributes:
        bytes_per_s: the limit; None: no limit.
        check: called during long sleeps, which it ends by an exception.
    """

    def __init__(
        self,
        bytes_per_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with a limit in bytes a second; clock and sleep are in seconds."""
        self.bytes_per_s = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._next = clock()
        self.check: Callable[[], None] = lambda: None

    @property
    def piece(self) -> int:
        """The largest number of bytes to send at once."""
        if self.bytes_per_s is None:
            return 1 << 22
        return max(PAGE_SIZE, min(1 << 20, int(self.bytes_per_s * PIECE_S)))

    def wait(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        if self.bytes_per_s is None:
            return
        now = self._clock()
        self._next = max(self._next, now - _CATCH_UP_S)
        while self._next - now > _CHECK_S:
            self._sleep(_CHECK_S)
            self.check()
            now = self._clock()
        if self._next > now:
            self._sleep(self._next - now)
        self._next += size / self.bytes_per_s
