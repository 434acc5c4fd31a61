"""Simulation of a pre-copy: pass after pass along a write curve, until the policy stops the target or
it is clear that it never will.

A pass that takes t leaves W(t) pages to copy again: each was written since the arm at which the pass
started, before or after it was copied. So passes, total time and downtime follow from the curve and the
bandwidth alone. A copier that compares contents finds those of them unchanged that were written before
the pass read them, and not after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from redirty.collector.model.memory import Memory, share
from redirty.collector.model.policy import PassSent, Policy, Remaining, arms_s
from redirty.collector.model.rewrites import met_before_read, rewritten, written_again
from redirty.collector.model.throttle import Throttle
from redirty.collector.model.write_curve import WriteModel

# If this number of consecutive passes left no less than the best pass before them, to a relative
# precision, no pass ever will.
_MAX_STALLED = 50
_LESS = 1e-6
_PARTS = 6  # equal parts of the memory, in the order in which a pass reads them
# When a pass reads each part, as a share of its duration, if its sends are unknown.
_READ_AT = [(part + 0.5) / _PARTS for part in range(_PARTS)]
_MAX_PASSES = 20_000  # no user waits for a policy that would make more


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
        pending_bytes: what the policy compares with its goal then: whole pages, and what is written until it stops.
    """

    converges: bool
    passes: tuple[Pass, ...]
    total_s: float
    downtime_s: float
    transferred_bytes: float
    left_bytes: float
    pending_bytes: float


@dataclass(frozen=True)
class PassState:
    """The state of a simulated mirror between two passes.

    Attributes:
        left: the work left.
        previous_round_s: length of the round of the previous pass; None before the first one.
        throttle: state of the policy's throttle; None: it has none.
        order: (_PARTS,) bytes that the next pass sends of each part of the memory, as if all parts were like it.
        least_bytes: minimum that any pass has left so far.
        stalled: number of consecutive passes that left no less than that.
    """

    left: Remaining
    previous_round_s: float | None
    order: tuple[float, ...]
    least_bytes: float
    stalled: int
    throttle: Throttle | None = None


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
        self._unthrottled = written
        self._pace = 1.0  # share of the time for which the target runs
        self.policy = policy
        self._link = bandwidth
        self.last_bandwidth = last_bandwidth
        self.passes: list[Pass] = []
        self._page_bytes = memory.page_bytes(policy)
        boundary_s = policy.boundary_s
        self._meanwhile_bytes = written(boundary_s) * self._page_bytes if boundary_s else 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes per second of the next pass: after the first one, the copier may be slower than the link."""
        limit = self.memory.rewritten_rate
        return self._link if limit is None or not self.passes else min(self._link, limit)

    def start(self) -> PassState:
        """Return the state before the first pass."""
        return PassState(
            left=self.memory.first_pass(self.policy),
            previous_round_s=None,
            order=(1.0,) * _PARTS,
            least_bytes=math.inf,
            stalled=0,
            throttle=self.policy.throttle,
        )

    def written(self, elapsed_s: float) -> float:
        """Return W(t) of the target as it is throttled now."""
        return self._unthrottled(elapsed_s * self._pace)

    def step(self, state: PassState) -> PassState | Outcome:
        """Make one pass. Return the state after it, or the outcome if no other pass follows."""
        policy, page_bytes, bandwidth = self.policy, self._page_bytes, self.bandwidth
        sent = policy.send(state.left, bandwidth, self._written_again)
        took_s = sent.bytes / bandwidth + self._comparing_s(state.left)
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
            to_do = unsent * (1 - share(overlap, unsent_whole)) + dirty
        pending = unsent_whole - overlap + dirty
        if (
            not policy.compares
        ):  # other tools compare what is pending without compression and headers
            pending = pending / page_bytes * self.memory.page_size
        left = Remaining(to_do, pending, meanwhile_bytes=self._meanwhile_bytes)
        if policy.stop(len(self.passes), left, self.bandwidth):
            return self._stopped(to_do + self._meanwhile_bytes, comparing_s=self._comparing_s(left))

        throttle = state.throttle
        if throttle is not None:
            throttle = throttle.after(sent.bytes, dirty, round_s)
            self._pace = throttle.pace(self._unthrottled, page_bytes)
        stalled = self._stalled(state, to_do, throttle)
        elapsed_s = sum(p.duration_s for p in self.passes) if policy.timeout_s is not None else 0.0
        if policy.forced and (stalled >= _MAX_STALLED or elapsed_s >= (policy.timeout_s or 0.0)):
            return self._stopped(to_do, max((policy.timeout_s or 0.0) - elapsed_s, 0.0))
        if policy.timeout_s is not None and elapsed_s >= policy.timeout_s:
            return self._never_stopped(to_do, pending, stalled)
        if policy.endless and (stalled >= _MAX_STALLED or len(self.passes) >= _MAX_PASSES):
            compared = pending + (self._meanwhile_bytes if policy.counts_stop else 0.0)
            return self._never_stopped(pending if policy.compares else to_do, compared, stalled)
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
            throttle=throttle,
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
        before: rewritten(). A page deferred because it is hot is at least as likely to be written as
        written_again() states for pages written twice.
        """
        if state.previous_round_s is None:
            dirty = self.written(round_s) * self._page_bytes
            likely = share(dirty, self.memory.pages * self._page_bytes)
        else:
            likely = rewritten(self.written, state.previous_round_s, round_s)
        sure = written_again(self.written, round_s, self._page_bytes)[1] if sent.hot else 0.0
        return max(likely, sure)

    def _unchanged(self, state: PassState, sent: PassSent, took_s: float) -> list[float]:
        """Return the pages, by part, that are dirty after a pass although it sent their current contents.

        They were written before the pass read them, and not after: met_before_read(), for the share of what
        was left that the pass sends. A copier that compares contents does not send them again.
        """
        sent_share = share(sent.bytes, state.left.bytes)
        met = met_before_read(
            self.written, state.previous_round_s, took_s, state.order, self.policy.boundary_s
        )
        return [pages * sent_share for pages in met]

    def _changed_before_read(
        self, unchanged: list[float], round_s: float, to_do: float
    ) -> list[float]:
        """Return the pages, by part, of the unchanged ones that are written before the next pass reads them.

        Each is written in the next round with the probability rewritten(), and before it is read with the
        share of the pass at which its part is read. What is sent for them makes the pass longer: two steps
        of a fixed-point iteration.
        """
        changed: list[float] = []
        more = 0.0
        for _ in range(2):
            chance = rewritten(self.written, round_s, (to_do + more) / self.bandwidth)
            changed = [pages * chance * at for pages, at in zip(unchanged, _READ_AT, strict=True)]
            more = sum(changed) / _PARTS * self._page_bytes
        return changed

    def _stalled(self, state: PassState, to_do: float, throttle: Throttle | None) -> int:
        """Return the number of consecutive passes, this one included, that left no less than the best one.

        A target that will be throttled more has not stalled.
        """
        if throttle is not None and not throttle.settled:
            return 0
        return 0 if to_do < state.least_bytes * (1 - _LESS) else state.stalled + 1

    def _comparing_s(self, left: Remaining) -> float:
        """Return the time in which a pass reads pages that are pending and turn out to be unchanged."""
        if not self.policy.compares or not self.passes:
            return 0.0
        unchanged = max(left.pending_bytes - left.bytes, 0.0) / self._page_bytes
        return unchanged * self.memory.compare_s

    def _stopped(self, left: float, waited_s: float = 0.0, comparing_s: float = 0.0) -> Outcome:
        """Return the outcome of stopping the target, with this number of bytes left.

        Args:
            left: bytes on the link.
            waited_s: until then passes like the last ones go on.
            comparing_s: see _comparing_s().
        """
        policy = self.policy
        took_s = left / (self.last_bandwidth or self.bandwidth) + comparing_s
        last_pass = Pass(len(self.passes) + 1, left, took_s)
        passes = (*self.passes, last_pass)
        goal, downtime_s = policy.downtime_s, last_pass.duration_s + policy.stop_s
        if policy.postcopy:
            downtime_s = policy.stop_s
        limited_s = downtime_s if policy.counts_stop else last_pass.duration_s
        return Outcome(
            converges=goal is None or limited_s <= goal * (1 + 1e-9),
            passes=passes,
            total_s=sum(p.duration_s for p in passes)
            + arms_s(policy, len(passes))
            + policy.stop_s
            + waited_s,
            downtime_s=downtime_s,
            transferred_bytes=sum(p.bytes for p in passes) + waited_s * self.bandwidth,
            left_bytes=0.0,
            pending_bytes=0.0,
        )

    def _never_stopped(self, left: float, pending: float, stalled: int) -> Outcome:
        """Return the outcome of a policy that would continue forever.

        left, pending: bytes that each pass leaves, on the link, and what the policy compares with its goal.
        """
        shown = self.passes[: len(self.passes) - stalled + 1] if stalled else self.passes
        return Outcome(
            converges=False,
            passes=tuple(shown),
            total_s=math.inf,
            downtime_s=math.inf,
            transferred_bytes=sum(p.bytes for p in self.passes),
            left_bytes=left,
            pending_bytes=pending,
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
