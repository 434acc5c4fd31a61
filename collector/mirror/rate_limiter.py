"""A rate limit: bytes leave as a clock allows, not faster and, when there are enough, not slower."""

from __future__ import annotations

import time
from collections.abc import Callable

_CATCH_UP_S = 0.02  # what sleeps were longer than asked is made up for, up to this
PIECE_S = 0.004  # and so long is what is sent at once, at most
_LOOK_S = 0.25  # a longer sleep than that is interrupted for a look at whether it is still wanted


class RateLimiter:
    """bytes_per_s: None without a limit. clock, sleep: of seconds, for tests. check: called now and then in
    long sleeps, and ends them by an exception."""

    def __init__(
        self,
        bytes_per_s: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock, self._sleep = clock, sleep
        self._next = clock()
        self.check: Callable[[], None] = lambda: None

    @property
    def piece(self) -> int:
        """How many bytes to ask for at once, at most."""
        if self.bytes_per_s is None:
            return 1 << 22
        return max(4096, min(1 << 20, int(self.bytes_per_s * PIECE_S)))

    def wait(self, size: int) -> None:
        """Returns when so many bytes may leave."""
        if self.bytes_per_s is None:
            return
        now = self._clock()
        self._next = max(self._next, now - _CATCH_UP_S)
        while self._next - now > _LOOK_S:
            self._sleep(_LOOK_S)
            self.check()
            now = self._clock()
        if self._next > now:
            self._sleep(self._next - now)
        self._next += size / self.bytes_per_s
