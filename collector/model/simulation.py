"""Steps along a write curve: pass after pass, until the policy stops the target or it is plain that
it never will.

A pass that takes t leaves W(t) pages to copy again: each was written since the arm at which the pass
began, before or after it was copied. So passes, total time and downtime follow from the curve and the
bandwidth alone. A copier that compares contents finds those of them unchanged that were written before
the pass read them, and not after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from redirty.collector.model.policy import Policy, Remaining
from redirty.collector.model.write_curve import WriteModel

Floats = npt.NDArray[np.float64]

# When so many passes have left no less than one before them did, to this part, none ever will.
_PATIENCE = 50
_LESS = 1e-6
_PARTS = 6  # of the memory, in the order in which a pass reads it
_PRECISION = 1.001
# of its duration, when nothing is known of what it sends
_READ_AT = [(part + 0.5) / _PARTS for part in range(_PARTS)]
_PASSES = 20_000  # of a policy that would make more, nobody waits for the end


@dataclass(frozen=True)
class Memory:
    """What is to be mirrored. pages: present, zero_pages of them all zero. page_size in bytes.

    layout: (pages, zero pages) of pieces of it, (n,) each, in the order in which they are copied;
    without it zero pages are taken to lie evenly among the others.
    """

    pages: float
    zero_pages: float
    page_size: int
    layout: tuple[Floats, Floats] | None = None

    def first_pass_bytes(self, policy: Policy) -> float:
        """Everything once."""
        return self._bytes(self.pages, self.zero_pages, policy)

    def _bytes(self, pages: float, zero_pages: float, policy: Policy) -> float:
        zero = policy.zero_page_bytes
        if zero is None:
            return pages * self.page_bytes(policy)
        return (pages - zero_pages) * self.page_bytes(policy) + zero_pages * zero

    def page_bytes(self, policy: Policy) -> float:
        """A page that is not zero, on the link."""
        return self.page_size + policy.header_bytes

    def first_pass(self, policy: Policy) -> Remaining:
        """Before anything is copied."""
        whole = self.first_pass_bytes(policy)
        pending = self.pages * self.page_size
        if self.layout is None or policy.zero_page_bytes is None:
            return Remaining(whole, pending)
        pages, zero = self._from_the_end

        def end_of(pending_bytes: float) -> float:
            last = pending_bytes / self.page_size
            return self._bytes(last, float(np.interp(last, pages, zero)), policy)

        return Remaining(whole, pending, end_of)

    @cached_property
    def _from_the_end(self) -> tuple[Floats, Floats]:
        """Of the last so many pages, how many are zero: ascending, from 0 on."""
        assert self.layout is not None
        pages, zero = (np.cumsum(part[::-1]) for part in self.layout)
        return np.insert(pages, 0, 0.0), np.insert(zero, 0, 0.0)

    def unsent_pages(self, unsent_bytes: float, policy: Policy) -> float:
        """Of the first pass, how many pages so many bytes on the link, its last ones, are."""
        if unsent_bytes <= 0:
            return 0.0
        whole = self.first_pass_bytes(policy)
        if self.layout is None or policy.zero_page_bytes is None:
            return self.pages * _share(unsent_bytes, whole)
        pages, zero = self._from_the_end
        sizes = (pages - zero) * self.page_bytes(policy) + zero * policy.zero_page_bytes
        return float(np.interp(unsent_bytes, sizes, pages))


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


def simulate(
    memory: Memory,
    written: WriteModel,
    policy: Policy,
    bandwidth: float,
    last_bandwidth: float | None = None,
) -> Outcome:
    """Steps through the passes. bandwidth: bytes per second, > 0. last_bandwidth: that of the last
    pass, where the others are slowed down on purpose (QEMU lifts its max-bandwidth for it).

    Errors: ValueError for a bandwidth that is none.
    """
    if not bandwidth > 0 or (last_bandwidth is not None and not last_bandwidth > 0):
        raise ValueError("a link carries more than 0 bytes per second")
    page_bytes = memory.page_bytes(policy)
    known = memory.pages * page_bytes
    left = memory.first_pass(policy)
    passes: list[Pass] = []
    least, tries, order = math.inf, 0, [1.0] * _PARTS  # so few are quicker as a list
    before_s: float | None = None  # the round of the pass before
    meanwhile = written(policy.boundary_s) * page_bytes if policy.boundary_s else 0.0

    def again(seconds: float) -> tuple[float, float]:
        """See policy.Again; in the first pass everything is sent."""
        return written_again(written, seconds, page_bytes) if passes else (0.0, 0.0)

    while True:
        sent = policy.send(left, bandwidth, again)
        took_s = sent.bytes / bandwidth
        round_s = took_s + policy.boundary_s
        unsent = left.bytes - sent.bytes
        # as if none of its pages were zero
        whole = unsent if passes else memory.unsent_pages(unsent, policy) * page_bytes
        if policy.compares:
            whole = sent.kept_bytes
        dirty = written(round_s) * page_bytes
        # Pages that were not sent may have been written again besides: both sets once. In the first pass
        # they are no more likely to be than any page; later ones were written a pass before.
        likely = (
            _share(dirty, known) if before_s is None else _rewritten(written, before_s, round_s)
        )
        sure = written_again(written, round_s, page_bytes)[1] if sent.hot else 0.0
        overlap = min(whole * max(likely, sure), dirty)
        passes.append(Pass(len(passes) + 1, sent.bytes, took_s))
        to_do = unsent * (1 - _share(overlap, whole)) + dirty
        same: list[float] = []
        if policy.compares:
            share, all_dirty = _share(sent.bytes, left.bytes), written(round_s)
            met = met_before_read(written, before_s, took_s, order, policy.boundary_s)
            same = [pages * share for pages in met]
            order = [max(all_dirty - pages, 0.0) for pages in same]
            to_do = whole - overlap + sum(order) / _PARTS * page_bytes
        pending = (whole - overlap + dirty) / page_bytes * memory.page_size
        left = Remaining(to_do, pending, meanwhile_bytes=meanwhile)
        if policy.stop(len(passes), left, bandwidth):
            return _stopped(passes, to_do + meanwhile, policy, bandwidth, last_bandwidth)
        tries = 0 if to_do < least * (1 - _LESS) else tries + 1
        least = min(least, to_do)
        if policy.endless and (tries >= _PATIENCE or len(passes) >= _PASSES):
            total = sum(p.bytes for p in passes)
            shown = passes[: len(passes) - tries + 1] if tries else passes
            kept = pending if policy.compares else to_do
            return Outcome(False, tuple(shown), math.inf, math.inf, total, kept)
        if policy.compares:
            # Of those that are as they were sent, some are written before the next pass reads them.
            more = 0.0
            for _ in range(2):  # what it sends for that makes it longer
                chance = _rewritten(written, round_s, (to_do + more) / bandwidth)
                changed = [pages * chance * at for pages, at in zip(same, _READ_AT, strict=True)]
                more = sum(changed) / _PARTS * page_bytes
            order = [a + b for a, b in zip(order, changed, strict=True)]
            left = replace(left, bytes=to_do + more)
        before_s = round_s


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 0 else 0.0


def _rewritten(written: WriteModel, before_s: float, now_s: float) -> float:
    """Of a workload that stays as it is: with which probability a page written in a stretch of time is
    written in the next one, too."""
    one = written(before_s)
    return _share(max(one + written(now_s) - written(before_s + now_s), 0.0), one)


def met_before_read(
    written: WriteModel,
    before_s: float | None,
    now_s: float,
    order: list[float],
    late_s: float = 0.0,
) -> list[float]:
    """Of the pages written in a pass of now_s, which begins late_s after the arm, how many are as they were
    sent in it: not written after it read them. It reads what was written in before_s before it; None:
    everything.

    order: how much the pass sends of each of n equal parts of the memory, one after the other; the
    result is of these, too, each as if all were like it.
    """

    before = 0.0 if before_s is None else written(before_s)

    def met(t: float) -> float:
        """Pages that the pass reads, written within t."""
        if before_s is None:
            return written(t)
        return max(before + written(t) - written(before_s + t), 0.0)

    total = max(sum(order), 1e-300)
    all_met = met(late_s + now_s)
    found, done = [], 0.0
    for part in order:
        at = (done + part / 2) / total
        found.append(max(all_met - met((1 - at) * now_s), 0.0))
        done += part
    return found


def written_again(written: WriteModel, seconds: float, page_bytes: float) -> tuple[float, float]:
    """Of a workload that stays as it is, by counting in and out: the bytes of pages written in both of
    two stretches of time, and with which probability such a page is written in a third one, too."""
    one, two, three = (written(seconds * n) for n in (1, 2, 3))
    both = max(2 * one - two, 0.0)
    thrice = max(3 * one - 3 * two + three, 0.0)
    return both * page_bytes, _share(thrice, both)


def _stopped(
    passes: list[Pass], left: float, policy: Policy, bandwidth: float, last: float | None
) -> Outcome:
    down = Pass(len(passes) + 1, left, left / (last or bandwidth))
    made = (*passes, down)
    goal, downtime_s = policy.downtime_s, down.duration_s + policy.boundary_s
    return Outcome(
        converges=goal is None or downtime_s <= goal * (1 + 1e-9),
        passes=made,
        # the arm at the beginning, one after each pass, and one when the target stands still
        total_s=sum(p.duration_s for p in made) + (len(made) + 1) * policy.boundary_s,
        downtime_s=downtime_s,
        transferred_bytes=sum(p.bytes for p in made),
        left_bytes=0.0,
    )


def least_bandwidth(
    memory: Memory,
    written: WriteModel,
    policy: Policy,
    most: float = 1e15,
    precision: float = _PRECISION,
) -> float | None:
    """The smallest bandwidth, in bytes per second to a precision (1.001: 0.1 %), with which the policy
    ends within its downtime; None when not even `most` does, or when it has none to keep."""
    goal = policy.downtime_s
    if goal is None:
        return None
    guess = max(written(goal) * memory.page_bytes(policy) / goal, 1.0)
    return _least(
        lambda b: simulate(memory, written, policy, b).converges, guess, most, precision=precision
    )


def least_downtime(
    memory: Memory, written: WriteModel, policy_with: Callable[[float], Policy], bandwidth: float
) -> float | None:
    """The smallest downtime goal, in seconds to 0.1 %, that the policy can keep with a bandwidth,
    from 1 ms on; None when it is more than a day."""

    def ends(goal: float) -> bool:
        return simulate(memory, written, policy_with(goal), bandwidth).converges

    return _least(ends, 0.1, 86400.0, 1e-3)


def _least(
    enough: Callable[[float], bool],
    guess: float,
    most: float,
    least: float = 1.0,
    precision: float = _PRECISION,
) -> float | None:
    """The smallest number that is enough, to a precision; at least `least`. More is always enough."""
    low = high = max(guess, least)
    while not enough(high):
        low, high = high, high * 2
        if high > most:
            return None
    if low == high:
        while low > least and enough(low):
            low, high = max(low / 2, least), low
        if low == least and enough(low):
            return least
    while high / low > precision:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
