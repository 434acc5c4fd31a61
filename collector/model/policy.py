"""When a mirror makes another pass, and when it stops the target: the rules that tools follow.

A policy is asked after each pass with what is left to copy. Sources: QEMU 7.2 (migration/migration.c:
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

NAMES = "redirty, qemu, criu:N, passes:N or xen"
QEMU_ZERO_PAGE_BYTES = 9  # its 8-byte header and the byte that is repeated
QEMU_PAGE_HEADER_BYTES = 8
QEMU_LOOK_S = 0.1  # BUFFER_DELAY: how often its thread comes to see whether what is left would fit
SURE = 0.9  # a page is held back when it will be written again with this probability

DEFAULT_DOWNTIME_S = 0.3


@dataclass(frozen=True)
class Remaining:
    """What is to be copied in a pass. bytes: on the link. pending_bytes: whole pages, zero or not.
    end_of: of the last so many pending bytes, how many go over the link; None: as of all of them.
    meanwhile_bytes: what is written until the target stands still, if it is stopped now."""

    bytes: float
    pending_bytes: float
    end_of: Callable[[float], float] | None = None
    meanwhile_bytes: float = 0.0

    def of_the_last(self, pending_bytes: float) -> float:
        """What the last so many pending bytes are on the link."""
        if pending_bytes >= self.pending_bytes:
            return self.bytes
        if self.end_of is not None:
            return self.end_of(pending_bytes)
        return pending_bytes * self.bytes / self.pending_bytes


# again(s): of the pages written in two stretches of s seconds, how many bytes in both, and with which
# probability such a page is written in a third one, too.
Again = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class PassSent:
    """What a pass sends before the page tables are looked at again, in bytes. hot: what it does not
    send are pages that were written again and again, kept_bytes of them."""

    bytes: float
    hot: bool = False
    kept_bytes: float = 0.0


class Policy(Protocol):
    """name: as the user writes it. zero_page_bytes (None: as any other), header_bytes: what a page
    costs on the link beside its contents. downtime_s: the goal; None: it has none. endless: it goes
    on for ever when it does not converge. compares: pages with the contents that were sent are not
    sent again. boundary_s: what passes between one pass and the next, and before the last one, beside
    sending."""

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

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """Of what is left, how much is sent in this pass."""

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """Whether the target is stopped now, after pass `number` (from 1), with so much left."""


@dataclass(frozen=True)
class Qemu:
    """Passes until what is left fits the downtime limit. Every 100 ms it compares what is left of the
    pass, whole pages, with bandwidth x limit; once that fits, it takes what was written meanwhile
    to it, so a pass ends early."""

    downtime_s: float
    zero_page_bytes: float | None = QEMU_ZERO_PAGE_BYTES
    header_bytes: float = QEMU_PAGE_HEADER_BYTES
    endless: bool = True
    compares: bool = False
    boundary_s: float = 0.0

    @property
    def name(self) -> str:
        return "qemu"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        step = bandwidth * QEMU_LOOK_S
        fits = left.of_the_last(bandwidth * self.downtime_s)
        # at a look with exactly the limit pending it goes on
        steps = max(1.0, math.floor((left.bytes - fits) / step) + 1)
        return PassSent(min(left.bytes, steps * step))

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return left.pending_bytes < bandwidth * self.downtime_s or left.pending_bytes == 0


@dataclass(frozen=True)
class Goal:
    """Passes until what is left fits the downtime goal. keep_hot: pages that will surely be written
    again are kept for the end, as far as they fit the goal: redirty's own. It stops when all that was
    written fits, as what is unchanged shows only when it is read."""

    downtime_s: float
    boundary_s: float = 0.0
    keep_hot: bool = True
    compares: bool = True
    zero_page_bytes: float | None = 0.0
    header_bytes: float = 0.0
    endless: bool = True

    @property
    def name(self) -> str:
        return "redirty"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        if not self.keep_hot:
            return PassSent(left.bytes)
        hot, sure = again(left.bytes / bandwidth)
        if sure < SURE:
            return PassSent(left.bytes)
        kept = min(hot, self._most(bandwidth), left.pending_bytes)
        # Pages that are written so often are hardly found unchanged; at random moments, half are at most.
        sent = max(left.bytes - kept, (left.pending_bytes - kept) / 2)
        return PassSent(sent, hot=True, kept_bytes=kept)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        fits = left.pending_bytes + left.meanwhile_bytes <= self._most(bandwidth)
        return fits and self.boundary_s <= self.downtime_s

    def _most(self, bandwidth: float) -> float:
        """What the last pass can carry in time."""
        return bandwidth * max(self.downtime_s - self.boundary_s, 0.0)


@dataclass(frozen=True)
class Fixed:
    """A set number of passes, then the rest: CRIU's pre-dumps, the 2009 module."""

    passes: int
    kind: str = "passes"
    downtime_s: float | None = None
    zero_page_bytes: float | None = None
    header_bytes: float = 0.0
    endless: bool = False
    compares: bool = False
    boundary_s: float = 0.0

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
    """At most five passes, fewer when fewer than 50 pages are left."""

    passes: int = 5
    few_bytes: float = 50 * 4096
    downtime_s: float | None = None
    zero_page_bytes: float | None = None
    header_bytes: float = 8.0
    endless: bool = False
    compares: bool = False
    boundary_s: float = 0.0

    @property
    def name(self) -> str:
        return "xen"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        return PassSent(left.bytes)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return number >= self.passes or left.pending_bytes < self.few_bytes


def policy_of(text: str, downtime_s: float | None = None, boundary_s: float = 0.0) -> Policy:
    """A policy by its name. downtime_s: the goal; without it 0.3 s where the policy needs one.
    boundary_s: see Policy, of redirty's own; what it is of others nobody measured.

    Errors: UsageError.
    """
    goal = DEFAULT_DOWNTIME_S if downtime_s is None else downtime_s
    if text == "redirty":
        return Goal(goal, boundary_s)
    if text == "qemu":
        return Qemu(goal)
    if text == "xen":
        return Xen(downtime_s=downtime_s)
    kind, _, number = text.partition(":")
    if kind in ("criu", "passes"):
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 10_000):
            raise UsageError(f"policy {text!r} needs a number of passes, 1 to 10000: {kind}:3")
        return Fixed(int(number), kind, downtime_s)
    raise UsageError(f"policy {text!r} is not known: give {NAMES}")
