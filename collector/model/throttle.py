"""Throttling of a guest that writes too fast, as QEMU does it: auto-converge, and the dirty limit.

Source: migration/ram.c of QEMU 8.2: migration_bitmap_sync, migration_trigger_throttle, mig_throttle_guest_down,
migration_dirty_limit_guest; softmmu/cpu-throttle.c: a throttled vCPU runs for 1 - percent / 100 of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from redirty.collector.model.write_curve import WriteModel

PERIOD_S = 1.0  # a check at the end of a pass counts when the last one is at least this long ago
THRESHOLD = 0.5  # throttle-trigger-threshold: of the bytes sent since then
_TIMES = 2  # checks above the threshold until it acts
_GIVEN_UP_S = 10.0  # without an action: it will not act any more
_STEPS = 40  # of a bisection


def pace_of(percent: float, busy: float) -> float:
    """Return how fast a guest's program runs that needs a share `busy` of the time, throttled by some percent."""
    return min((1 - percent / 100) / busy, 1.0)


@dataclass(frozen=True)
class Throttle:
    """The state of QEMU's throttling.

    Attributes:
        initial, increment, most: percent: cpu-throttle-initial, cpu-throttle-increment, max-cpu-throttle.
        busy: share of the time for which the guest's vCPUs run unthrottled: what is idle anyway can be taken from it
            without slowing it down.
        limit: bytes per second that the guest may write once it is limited; None: its vCPUs are throttled.
        percent: by which the vCPUs are throttled now; of a limited guest 100.
        high: checks above the threshold since the last action.
        seconds, dirty, sent: since the last check.
        since_s: since the last action.
    """

    initial: int = 20
    increment: int = 10
    most: int = 99
    busy: float = 1.0
    limit: float | None = None
    percent: int = 0
    high: int = 0
    seconds: float = 0.0
    dirty: float = 0.0
    sent: float = 0.0
    since_s: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether it will hardly act any more."""
        return self.percent >= self.most or self.since_s > _GIVEN_UP_S

    def after(self, sent: float, dirty: float, seconds: float) -> Throttle:
        """Return the state after a pass that sent some bytes while others were written."""
        now = replace(
            self,
            seconds=self.seconds + seconds,
            dirty=self.dirty + dirty,
            sent=self.sent + sent,
            since_s=self.since_s + seconds,
        )
        if now.seconds <= PERIOD_S:
            return now
        high = now.high + (now.dirty > now.sent * THRESHOLD)
        now = replace(now, high=high, seconds=0.0, dirty=0.0, sent=0.0)
        if high < _TIMES or now.percent >= self.most:
            return now
        percent = min(now.percent + self.increment, self.most) if now.percent else self.initial
        if self.limit is not None:
            percent = self.most
        return replace(now, percent=percent, high=0, since_s=0.0)

    def pace(self, written: WriteModel, page_bytes: float) -> float:
        """Return how fast the guest's program runs, 1 as without a throttle."""
        if self.limit is None or not self.percent:
            return pace_of(self.percent, self.busy)
        if written(PERIOD_S) * page_bytes <= self.limit * PERIOD_S:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            fits = written(middle * PERIOD_S) * page_bytes <= self.limit * PERIOD_S
            low, high = (middle, high) if fits else (low, middle)
        return low
