"""Policies: when a mirror makes another pass, and when it stops the target. Those of redirty, CRIU and Xen.

A policy is consulted after each pass with the work left. Sources: CRIU's pre-dump; Xen
tools/libs/light/libxl_dom_save.c and tools/libs/guest sg_save_domain.c (the legacy stop conditions: 5 rounds, 50
pages). Those of hypervisors are in hypervisors.py, their names in policies.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from redirty.collector.model.throttle import Throttle
from redirty.collector.pageset import PAGE_SIZE

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


def arms_s(policy: Policy, passes: int) -> float:
    """Return the time before the first of a number of passes and between them."""
    start_s = policy.boundary_s if policy.start_s is None else policy.start_s
    return start_s + (passes - 1) * policy.boundary_s


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
        start_s: time before the first pass; None: a boundary.
        stop_s: the fixed part of a stop: how long the target is stopped in addition to sending.
        counts_stop: whether the goal includes stop_s; otherwise it limits the sending alone.
        throttle: how the target is slowed down when it writes too fast, before it is; None: not at all.
        postcopy: whether the rest is sent after the target runs at the other end.
        timeout_s: when it gives up; None: never.
        forced: whether the target is stopped then whatever is left; otherwise the migration is cancelled.
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
    def start_s(self) -> float | None: ...

    @property
    def stop_s(self) -> float: ...

    @property
    def counts_stop(self) -> bool: ...

    @property
    def throttle(self) -> Throttle | None: ...

    @property
    def postcopy(self) -> bool: ...

    @property
    def timeout_s(self) -> float | None: ...

    @property
    def forced(self) -> bool: ...

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """Decide how much of the work left this pass sends."""

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """Decide whether the target is stopped now, after pass `number` (from 1)."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Hold what only some tools do: see Policy."""

    throttle: Throttle | None = None
    start_s: float | None = None
    postcopy: bool = False
    timeout_s: float | None = None
    forced: bool = False


@dataclass(frozen=True)
class Goal(Extras):
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
class Fixed(Extras):
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
class Xen(Extras):
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
