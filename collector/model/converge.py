"""Steps along a write curve: pass after pass, until the policy stops the target or it is plain that
it never will.

A pass that takes t leaves W(t) pages to copy again: each was written since the arm at which the pass
began, before or after it was copied. So passes, total time and downtime follow from the curve and the
bandwidth alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from redirty.collector.model.curve import Written
from redirty.collector.model.policy import Policy

# When so many passes have left no less than one before them did, to this part, none ever will.
_PATIENCE = 200
_LESS = 1e-6


@dataclass(frozen=True)
class Memory:
    """What is to be mirrored. pages: present, zero_pages of them all zero. page_size in bytes."""

    pages: float
    zero_pages: float
    page_size: int

    def first_pass_bytes(self, policy: Policy) -> float:
        """Everything once."""
        full = self.pages - self.zero_pages
        return full * self.page_bytes(policy) + self.zero_pages * policy.zero_page_bytes

    def page_bytes(self, policy: Policy) -> float:
        """A page that is not zero, on the link."""
        return self.page_size + policy.header_bytes


@dataclass(frozen=True)
class Pass:
    """One trip of the copier. number: from 1; the last one is made while the target stands still."""

    number: int
    bytes: float
    duration_s: float


@dataclass(frozen=True)
class Outcome:
    """What would happen. When it does not converge the passes are those after which nothing changes
    any more, total_s and downtime_s are infinite, and left_bytes is what each pass leaves."""

    converges: bool
    passes: tuple[Pass, ...]
    total_s: float
    downtime_s: float
    transferred_bytes: float
    left_bytes: float


def simulate(memory: Memory, written: Written, policy: Policy, bandwidth: float) -> Outcome:
    """Steps through the passes. bandwidth: bytes per second, > 0.

    Errors: ValueError for a bandwidth that is none.
    """
    if not bandwidth > 0:
        raise ValueError("a link carries more than 0 bytes per second")
    page_bytes = memory.page_bytes(policy)
    left = memory.first_pass_bytes(policy)
    passes: list[Pass] = []
    least, tries = math.inf, 0
    while True:
        sent = policy.sent_before_look(left, bandwidth)
        took_s = sent / bandwidth
        passes.append(Pass(len(passes) + 1, sent, took_s))
        unsent = left - sent
        again = written(took_s) * page_bytes
        # Pages that were not sent yet, and may have been written again besides: both sets once.
        known = memory.pages * page_bytes
        overlap = unsent * again / known if known > 0 else 0.0
        left = unsent + again - overlap
        if policy.stop(len(passes), left, bandwidth):
            return _stopped(passes, left, bandwidth)
        tries = 0 if left < least * (1 - _LESS) else tries + 1
        least = min(least, left)
        if policy.endless and tries >= _PATIENCE:
            total = sum(p.bytes for p in passes)
            return Outcome(False, tuple(passes), math.inf, math.inf, total, left)


def _stopped(passes: list[Pass], left: float, bandwidth: float) -> Outcome:
    last = Pass(len(passes) + 1, left, left / bandwidth)
    made = (*passes, last)
    return Outcome(
        converges=True,
        passes=made,
        total_s=sum(p.duration_s for p in made),
        downtime_s=last.duration_s,
        transferred_bytes=sum(p.bytes for p in made),
        left_bytes=0.0,
    )


def least_bandwidth(
    memory: Memory, written: Written, policy: Policy, downtime_s: float, most: float = 1e15
) -> float | None:
    """The smallest bandwidth, in bytes per second to 0.1 %, with which the policy ends within a
    downtime; None when not even `most` does."""

    def enough(bandwidth: float) -> bool:
        found = simulate(memory, written, policy, bandwidth)
        return found.converges and found.downtime_s <= downtime_s * (1 + 1e-9)

    high = 1.0
    while not enough(high):
        high *= 2
        if high > most:
            return None
    low = high / 2
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
