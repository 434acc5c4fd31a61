"""Simulation of a pre-copy: pass after pass along a write curve, until the policy stops the target or
it is clear that it never will.

A pass that takes t leaves W(t) pages to copy again: each was written since the arm at which the pass
started, before or after it was copied. So passes, total time and downtime follow from the curve and the
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
from redirty.collector.model.policy import PassSent, Policy, Remaining
from redirty.collector.model.write_curve import WriteModel

Floats = npt.NDArray[np.float64]

# If this number of consecutive passes left no less than the best pass before them, to a relative
# precision, no pass ever will.
_MAX_STALLED = 50
_LESS = 1e-6
_PARTS = 6  # equal parts of the memory, in the order in which a pass reads them
# When a pass reads each part, as a share of its duration, if its sends are unknown.
_READ_AT = [(part + 0.5) / _PARTS for part in range(_PARTS)]
_MAX_PASSES = 20_000  # no user waits for a policy that would make more
_PRECISION = 1.001


@dataclass(frozen=True)
class Memory:
    """Memory to be mirrored.

    Attributes:
        pages: pages present.
        zero_pages: those of them that are all zeros.
        page_size: in bytes.
        layout: (pages, zero pages) of the pieces of the memory, (n,) each, in the order in which they are
            copied. Without it, zero pages are assumed to be spread evenly.
    """

    pages: float
    zero_pages: float
    page_size: int
    layout: tuple[Floats, Floats] | None = None

    def first_pass_bytes(self, policy: Policy) -> float:
        """Return the bytes on the link of a pass over all memory."""
        return self._bytes(self.pages, self.zero_pages, policy)

    def _bytes(self, pages: float, zero_pages: float, policy: Policy) -> float:
        zero = policy.zero_page_bytes
        if zero is None:
            return pages * self.page_bytes(policy)
        return (pages - zero_pages) * self.page_bytes(policy) + zero_pages * zero

    def page_bytes(self, policy: Policy) -> float:
        """Return the bytes on the link of a page that is not zero."""
        return self.page_size + policy.header_bytes

    def first_pass(self, policy: Policy) -> Remaining:
        """Return the work left before the first pass."""
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
        """(pages, zero pages) summed from the end of the memory on: (n + 1,) each, ascending from 0."""
        assert self.layout is not None
        pages, zero = (np.cumsum(part[::-1]) for part in self.layout)
        return np.insert(pages, 0, 0.0), np.insert(zero, 0, 0.0)

    def unsent_pages(self, unsent_bytes: float, policy: Policy) -> float:
        """Return how many pages the last unsent_bytes of the first pass, on the link, represent."""
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
    """A pass of the copier.

    Attributes:
        number: from 1; the last pass is made while the target is stopped.
        bytes: bytes on the link.
        duration_s: duration of the pass.
    """

    number: int
    bytes: float
    duration_s: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of a simulated mirror.

    Attributes:
        converges: whether the target can be stopped within the downtime goal.
        passes: all passes. If it does not converge: up to the one after which nothing changes any more.
        total_s: from the start to the end; infinite when the policy never stops the target.
        downtime_s: how long the target is stopped; infinite in the same case.
        transferred_bytes: bytes on the link.
        left_bytes: bytes that each pass leaves when the policy never stops the target, else 0.
    """

    converges: bool
    passes: tuple[Pass, ...]
    total_s: float
    downtime_s: float
    transferred_bytes: float
    left_bytes: float


@dataclass(frozen=True)
class PassState:
    """The state of a simulated mirror between two passes.

    Attributes:
        left: the work left.
        previous_round_s: length of the round of the previous pass; None before the first one.
        order: (_PARTS,) bytes that the next pass sends of each part of the memory, as if all parts were like it.
        least_bytes: minimum that any pass has left so far.
        stalled: number of consecutive passes that left no less than that.
    """

    left: Remaining
    previous_round_s: float | None
    order: tuple[float, ...]
    least_bytes: float
    stalled: int


class Simulation:
    """Pre-copy of memory over a link, one pass per step.

    Attributes:
        passes: the passes made so far.

    Raises: ValueError for a bandwidth that is not positive.
    """

    def __init__(
        self,
        memory: Memory,
        written: WriteModel,
        policy: Policy,
        bandwidth: float,
        last_bandwidth: float | None = None,
    ) -> None:
        if not bandwidth > 0 or (last_bandwidth is not None and not last_bandwidth > 0):
            raise ValueError("a bandwidth must be positive")
        self.memory = memory
        self.written = written
        self.policy = policy
        self.bandwidth = bandwidth
        self.last_bandwidth = last_bandwidth
        self.passes: list[Pass] = []
        self._page_bytes = memory.page_bytes(policy)
        boundary_s = policy.boundary_s
        self._meanwhile_bytes = written(boundary_s) * self._page_bytes if boundary_s else 0.0

    def start(self) -> PassState:
        """Return the state before the first pass."""
        return PassState(
            left=self.memory.first_pass(self.policy),
            previous_round_s=None,
            order=(1.0,) * _PARTS,
            least_bytes=math.inf,
            stalled=0,
        )

    def step(self, state: PassState) -> PassState | Outcome:
        """Make one pass. Return the state after it, or the outcome if no other pass follows."""
        policy, page_bytes = self.policy, self._page_bytes
        sent = policy.send(state.left, self.bandwidth, self._written_again)
        took_s = sent.bytes / self.bandwidth
        round_s = took_s + policy.boundary_s
        dirty = self.written(round_s) * page_bytes
        unsent = state.left.bytes - sent.bytes
        unsent_whole = self._unsent_whole(unsent, sent)
        overlap = min(unsent_whole * self._overlap(state, sent, round_s), dirty)
        self.passes.append(Pass(len(self.passes) + 1, sent.bytes, took_s))

        unchanged: list[float] = []
        order = state.order
        if policy.compares:
            unchanged = self._unchanged(state, sent, took_s)
            order = tuple(max(self.written(round_s) - pages, 0.0) for pages in unchanged)
            to_do = unsent_whole - overlap + sum(order) / _PARTS * page_bytes
        else:
            to_do = unsent * (1 - _share(overlap, unsent_whole)) + dirty
        pending = (unsent_whole - overlap + dirty) / page_bytes * self.memory.page_size
        left = Remaining(to_do, pending, meanwhile_bytes=self._meanwhile_bytes)
        if policy.stop(len(self.passes), left, self.bandwidth):
            return self._stopped(to_do + self._meanwhile_bytes)

        stalled = self._stalled(state, to_do)
        if policy.endless and (stalled >= _MAX_STALLED or len(self.passes) >= _MAX_PASSES):
            return self._never_stopped(pending if policy.compares else to_do, stalled)
        if policy.compares:
            changed = self._changed_before_read(unchanged, round_s, to_do)
            order = tuple(a + b for a, b in zip(order, changed, strict=True))
            left = replace(left, bytes=to_do + sum(changed) / _PARTS * page_bytes)
        return PassState(
            left=left,
            previous_round_s=round_s,
            order=order,
            least_bytes=min(state.least_bytes, to_do),
            stalled=stalled,
        )

    def _written_again(self, seconds: float) -> tuple[float, float]:
        """See policy.Again. In the first pass everything is sent, so there are no such pages."""
        return written_again(self.written, seconds, self._page_bytes) if self.passes else (0.0, 0.0)

    def _unsent_whole(self, unsent: float, sent: PassSent) -> float:
        """Return the bytes of the pages that a pass does not send, as if none of them were zero."""
        if self.policy.compares:
            return sent.kept_bytes
        if self.passes:
            return unsent
        return self.memory.unsent_pages(unsent, self.policy) * self._page_bytes

    def _overlap(self, state: PassState, sent: PassSent, round_s: float) -> float:
        """Return the probability that a page that was not sent is written in the round of the pass.

        Such pages are pending already, so the union of both sets counts them once. In the first pass an unsent
        page is as likely to be written as any other: W(round) / all pages. Later it was written one pass
        before: _rewritten(). A page deferred because it is hot is at least as likely to be written as
        written_again() states for pages written twice.
        """
        if state.previous_round_s is None:
            dirty = self.written(round_s) * self._page_bytes
            likely = _share(dirty, self.memory.pages * self._page_bytes)
        else:
            likely = _rewritten(self.written, state.previous_round_s, round_s)
        sure = written_again(self.written, round_s, self._page_bytes)[1] if sent.hot else 0.0
        return max(likely, sure)

    def _unchanged(self, state: PassState, sent: PassSent, took_s: float) -> list[float]:
        """Return the pages, by part, that are dirty after a pass although it sent their current contents.

        They were written before the pass read them, and not after: met_before_read(), for the share of what
        was left that the pass sends. A copier that compares contents does not send them again.
        """
        share = _share(sent.bytes, state.left.bytes)
        met = met_before_read(
            self.written, state.previous_round_s, took_s, state.order, self.policy.boundary_s
        )
        return [pages * share for pages in met]

    def _changed_before_read(
        self, unchanged: list[float], round_s: float, to_do: float
    ) -> list[float]:
        """Return the pages, by part, of the unchanged ones that are written before the next pass reads them.

        Each is written in the next round with the probability _rewritten(), and before it is read with the
        share of the pass at which its part is read. What is sent for them makes the pass longer: two steps
        of a fixed-point iteration.
        """
        changed: list[float] = []
        more = 0.0
        for _ in range(2):
            chance = _rewritten(self.written, round_s, (to_do + more) / self.bandwidth)
            changed = [pages * chance * at for pages, at in zip(unchanged, _READ_AT, strict=True)]
            more = sum(changed) / _PARTS * self._page_bytes
        return changed

    def _stalled(self, state: PassState, to_do: float) -> int:
        """Return the number of consecutive passes, this one included, that left no less than the best one."""
        return 0 if to_do < state.least_bytes * (1 - _LESS) else state.stalled + 1

    def _stopped(self, left: float) -> Outcome:
        """Return the outcome of stopping the target now, with this number of bytes left."""
        policy = self.policy
        last_pass = Pass(len(self.passes) + 1, left, left / (self.last_bandwidth or self.bandwidth))
        passes = (*self.passes, last_pass)
        goal, downtime_s = policy.downtime_s, last_pass.duration_s + policy.boundary_s
        return Outcome(
            converges=goal is None or downtime_s <= goal * (1 + 1e-9),
            passes=passes,
            # one arm at the start, one after each pass, and one when the target is stopped
            total_s=sum(p.duration_s for p in passes) + (len(passes) + 1) * policy.boundary_s,
            downtime_s=downtime_s,
            transferred_bytes=sum(p.bytes for p in passes),
            left_bytes=0.0,
        )

    def _never_stopped(self, left: float, stalled: int) -> Outcome:
        """Return the outcome of a policy that would continue forever. left: bytes that each pass leaves."""
        shown = self.passes[: len(self.passes) - stalled + 1] if stalled else self.passes
        return Outcome(
            converges=False,
            passes=tuple(shown),
            total_s=math.inf,
            downtime_s=math.inf,
            transferred_bytes=sum(p.bytes for p in self.passes),
            left_bytes=left,
        )


def simulate(
    memory: Memory,
    written: WriteModel,
    policy: Policy,
    bandwidth: float,
    last_bandwidth: float | None = None,
) -> Outcome:
    """Simulate a mirror to its end.

    Args:
        memory: the memory to copy.
        written: the write curve of the target.
        policy: when to make another pass, and when to stop the target.
        bandwidth: bytes per second, > 0.
        last_bandwidth: bandwidth of the last pass, where the others are throttled on purpose (QEMU lifts
            its max-bandwidth for it).

    Raises: ValueError for a bandwidth that is not positive.
    """
    simulation = Simulation(memory, written, policy, bandwidth, last_bandwidth)
    state: PassState | Outcome = simulation.start()
    while not isinstance(state, Outcome):
        state = simulation.step(state)
    return state


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 0 else 0.0


def _rewritten(written: WriteModel, before_s: float, now_s: float) -> float:
    """Return the probability that a page written in before_s is also written in the now_s that follow.

    For a stationary workload: (W(before) + W(now) - W(before + now)) / W(before).
    """
    one = written(before_s)
    return _share(max(one + written(now_s) - written(before_s + now_s), 0.0), one)


def met_before_read(
    written: WriteModel,
    before_s: float | None,
    now_s: float,
    order: tuple[float, ...] | list[float],
    late_s: float = 0.0,
) -> list[float]:
    """Return how many pages written in a pass are unchanged since the pass read them.

    Args:
        written: the write curve.
        before_s: the pass reads what was written in this period before it; None: everything.
        now_s: length of the pass.
        order: bytes that the pass sends of each of n equal parts of the memory, in sequence.
        late_s: how long after the arm the pass starts.

    Returns: pages by part, (n,), each as if all parts were like it.
    """

    before = 0.0 if before_s is None else written(before_s)

    def met(t: float) -> float:
        """Return the pages that the pass reads and that are written within t."""
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
    """Return the bytes written in both of two consecutive periods, and the probability of a third write.

    For a stationary workload, by inclusion and exclusion: the bytes of the pages written in both periods, and
    the probability that such a page is also written in a third one.
    """
    one, two, three = (written(seconds * n) for n in (1, 2, 3))
    both = max(2 * one - two, 0.0)
    all_three = max(3 * one - 3 * two + three, 0.0)
    return both * page_bytes, _share(all_three, both)


def min_bandwidth(
    memory: Memory,
    written: WriteModel,
    policy: Policy,
    limit: float = 1e15,
    precision: float = _PRECISION,
) -> float | None:
    """Return the smallest bandwidth with which the policy keeps its downtime goal, in bytes per second.

    precision: relative, 1.001 is 0.1 %. None when the policy has no goal, or even `limit` does not suffice.
    """
    goal = policy.downtime_s
    if goal is None:
        return None
    guess = max(written(goal) * memory.page_bytes(policy) / goal, 1.0)
    return _smallest(
        lambda b: simulate(memory, written, policy, b).converges, guess, limit, precision=precision
    )


def min_downtime(
    memory: Memory, written: WriteModel, policy_with: Callable[[float], Policy], bandwidth: float
) -> float | None:
    """Return the smallest downtime goal that a policy can keep with a bandwidth, in seconds to 0.1 %.

    At least 1 ms; None when it is more than a day. policy_with: the policy with a given goal.
    """

    def suffices(goal: float) -> bool:
        return simulate(memory, written, policy_with(goal), bandwidth).converges

    return _smallest(suffices, 0.1, 86400.0, 1e-3)


def _smallest(
    suffices: Callable[[float], bool],
    guess: float,
    limit: float,
    floor: float = 1.0,
    precision: float = _PRECISION,
) -> float | None:
    """Return the smallest number that suffices, to a relative precision, and at least `floor`.

    Every larger number must also suffice. None when the result is above `limit`.
    """
    low = high = max(guess, floor)
    while not suffices(high):
        low, high = high, high * 2
        if high > limit:
            return None
    if low == high:
        while low > floor and suffices(low):
            low, high = max(low / 2, floor), low
        if low == floor and suffices(low):
            return floor
    while high / low > precision:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
