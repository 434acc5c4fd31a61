"""Policies of redirty and other tools: when a mirror makes another pass, and when it stops the target.

A policy is consulted after each pass with the work left. Sources: QEMU 7.2 (migration/migration.c:
migration_iteration_run, migration_update_counters, migration_completion; migration/ram.c:
ram_save_pending, save_zero_page_to_file); CRIU's pre-dump; Xen tools/libs/light/libxl_dom_save.c and
tools/libs/guest sg_save_domain.c (the legacy stop conditions: 5 rounds, 50 pages).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from redirty.collector.errors import UsageError
from redirty.collector.pageset import PAGE_SIZE

NAMES = "redirty, qemu, criu:N, passes:N or xen"
QEMU_ZERO_PAGE_BYTES = 9  # an 8-byte header and the byte that is repeated
QEMU_PAGE_HEADER_BYTES = 8
QEMU_POLL_S = 0.1  # BUFFER_DELAY: how often its thread checks whether the rest fits the limit
SURE = 0.9  # a page is deferred when it will be written again with this probability

DEFAULT_DOWNTIME_S = 0.3


@dataclass(frozen=True)
class Remaining:
    """Work left for a pass.

    Attributes:
        bytes: on the link.
        pending_bytes: whole pages, zero or not.
        end_of: returns how many bytes on the link the last n pending bytes take; None: in proportion.
        meanwhile_bytes: bytes written until the target is stopped, if that is requested now.
    """

    bytes: float
    pending_bytes: float
    end_of: Callable[[float], float] | None = None
    meanwhile_bytes: float = 0.0

    def of_the_last(self, pending_bytes: float) -> float:
        """Return how many bytes on the link the last pending_bytes take."""
        if pending_bytes >= self.pending_bytes:
            return self.bytes
        if self.end_of is not None:
            return self.end_of(pending_bytes)
        return pending_bytes * self.bytes / self.pending_bytes


# again(s): the bytes of the pages written in both of two consecutive periods of s seconds, and the
# probability that such a page is also written in a third one.
Again = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class PassSent:
    """Decision of a policy about one pass.

    Attributes:
        bytes: sent before the next scan, on the link.
        hot: whether the pages that are not sent are hot ones, written repeatedly.
        kept_bytes: how many bytes of hot pages are kept for a later pass.
    """

    bytes: float
    hot: bool = False
    kept_bytes: float = 0.0


class Policy(Protocol):
    """Rules of a pre-copy.

    Attributes:
        name: as the user writes it.
        zero_page_bytes: bytes on the link of a zero page; None: as any other page.
        header_bytes: bytes on the link of a page in addition to its contents.
        downtime_s: the goal; None when the policy has none.
        endless: whether it continues forever when it does not converge.
        compares: whether pages whose contents were sent already are not sent again.
        boundary_s: time between two passes, in addition to sending.
        stop_s: the fixed part of a stop: how long the target is stopped in addition to sending.
        counts_stop: whether the goal includes stop_s; otherwise it limits the sending alone.
    """

    @property
    def name(self) -> str: ...

    @property
    def zero_page_bytes(self) -> float | None: ...

    @property
    def header_bytes(self) -> float: ...

    @property
    def downtime_s(self) -> float | None: ...

    @property
    def endless(self) -> bool: ...

    @property
    def compares(self) -> bool: ...

    @property
    def boundary_s(self) -> float: ...

    @property
    def stop_s(self) -> float: ...

    @property
    def counts_stop(self) -> bool: ...

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """Decide how much of the work left this pass sends."""

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """Decide whether the target is stopped now, after pass `number` (from 1)."""


@dataclass(frozen=True)
class Qemu:
    """QEMU: passes until the rest fits the downtime limit.

    Every 100 ms it compares the rest of the pass, in whole pages, with bandwidth x limit; once that fits, it
    adds what was written meanwhile, so a pass ends early.
    """

    downtime_s: float
    zero_page_bytes: float | None = QEMU_ZERO_PAGE_BYTES
    header_bytes: float = QEMU_PAGE_HEADER_BYTES
    endless: bool = True
    compares: bool = False
    boundary_s: float = 0.0
    stop_s: float = 0.0
    counts_stop: bool = False

    @property
    def name(self) -> str:
        return "qemu"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        step = bandwidth * QEMU_POLL_S
        fits = left.of_the_last(bandwidth * self.downtime_s)
        # With exactly the limit pending it continues.
        steps = max(1.0, math.floor((left.bytes - fits) / step) + 1)
        return PassSent(min(left.bytes, steps * step))

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return left.pending_bytes < bandwidth * self.downtime_s or left.pending_bytes == 0


@dataclass(frozen=True)
class Goal:
    """redirty: passes until the rest fits the downtime goal.

    It stops the target when everything that was written fits, as unchanged pages are recognized only when they
    are read. keep_hot: defer pages that will almost certainly be written again to the last pass, as far as they
    fit the goal. stop_cost_s: the fixed part of a stop; None: a boundary.
    """

    downtime_s: float
    boundary_s: float = 0.0
    keep_hot: bool = True
    compares: bool = True
    zero_page_bytes: float | None = 0.0
    header_bytes: float = 0.0
    endless: bool = True
    stop_cost_s: float | None = None
    counts_stop: bool = True

    @property
    def name(self) -> str:
        return "redirty"

    @property
    def stop_s(self) -> float:
        """See Policy."""
        return self.boundary_s if self.stop_cost_s is None else self.stop_cost_s

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        if not self.keep_hot:
            return PassSent(left.bytes)
        hot, sure = again(left.bytes / bandwidth)
        if sure < SURE:
            return PassSent(left.bytes)
        kept = min(hot, self._capacity(bandwidth), left.pending_bytes)
        # Pages written that often are hardly ever unchanged; with random writes, at most half of the rest is.
        sent = max(left.bytes - kept, (left.pending_bytes - kept) / 2)
        return PassSent(sent, hot=True, kept_bytes=kept)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        fits = left.pending_bytes + left.meanwhile_bytes <= self._capacity(bandwidth)
        return fits and self.stop_s <= self.downtime_s

    def _capacity(self, bandwidth: float) -> float:
        """Return the bytes that the last pass can carry within the downtime goal."""
        return bandwidth * max(self.downtime_s - self.stop_s, 0.0)


@dataclass(frozen=True)
class Fixed:
    """A fixed number of passes, then the rest: CRIU's pre-dumps, the 2009 module."""

    passes: int
    kind: str = "passes"
    downtime_s: float | None = None
    zero_page_bytes: float | None = None
    header_bytes: float = 0.0
    endless: bool = False
    compares: bool = False
    boundary_s: float = 0.0
    stop_s: float = 0.0
    counts_stop: bool = True

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.passes}"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        return PassSent(left.bytes)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return number >= self.passes


@dataclass(frozen=True)
class Xen:
    """Xen: at most five passes, fewer when fewer than 50 pages are left."""

    passes: int = 5
    few_bytes: float = 50 * PAGE_SIZE
    downtime_s: float | None = None
    zero_page_bytes: float | None = None
    header_bytes: float = 8.0
    endless: bool = False
    compares: bool = False
    boundary_s: float = 0.0
    stop_s: float = 0.0
    counts_stop: bool = True

    @property
    def name(self) -> str:
        return "xen"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        return PassSent(left.bytes)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return number >= self.passes or left.pending_bytes < self.few_bytes


def policy_of(
    text: str,
    downtime_s: float | None = None,
    boundary_s: float = 0.0,
    stop_s: float | None = None,
) -> Policy:
    """Return a policy by its name.

    Args:
        text: one of NAMES.
        downtime_s: the goal; without it 0.3 s where the policy needs one.
        boundary_s: see Policy; used for redirty's own only, as it was not measured for other tools.
        stop_s: the fixed part of a stop; None: a boundary for redirty's own, nothing for others.

    Raises: UsageError for an unknown name.
    """
    goal = DEFAULT_DOWNTIME_S if downtime_s is None else downtime_s
    stop = stop_s or 0.0
    if text == "redirty":
        return Goal(goal, boundary_s, stop_cost_s=stop_s)
    if text == "qemu":
        return Qemu(goal, stop_s=stop)
    if text == "xen":
        return Xen(downtime_s=downtime_s, stop_s=stop)
    kind, _, number = text.partition(":")
    if kind in ("criu", "passes"):
        # Python refuses to convert more than 4,300 digits.
        digits = number.isascii() and number.isdigit() and len(number) < 4000
        if not (digits and 1 <= int(number) <= 10_000):
            raise UsageError(
                f"--policy {kind} needs a number of passes between 1 and 10000, like {kind}:3, got {text[:100]!r}"
            )
        return Fixed(int(number), kind, downtime_s, stop_s=stop)
    raise UsageError(f"unknown policy {text!r}: choose {NAMES}")
