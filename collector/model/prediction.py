"""A question to the model and its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redirty.collector.model.fit import Fit
from redirty.collector.model.memory import Memory
from redirty.collector.model.policies import policy_of
from redirty.collector.model.policy import Policy
from redirty.collector.model.simulation import Outcome
from redirty.collector.model.stop_cost import StopSteps
from redirty.collector.units import RateUnit

CONVERGES, DOES_NOT, UNCERTAIN = "converges", "does not converge", "uncertain"


@dataclass(frozen=True)
class CopierSpeed:
    """Speed of redirty's copier on a machine, to a kind of destination.

    Attributes:
        bytes_per_s: of the contents of pages that follow each other.
        run_s: seconds that each run of pages takes in addition.
        compare_s: seconds that a page takes whose contents were sent before: it is read, and not sent again.
        flush_s: seconds from the last page until everything has arrived.
        ratio: how many times smaller it makes pages like the target's; None: not measured.
    """

    bytes_per_s: float
    run_s: float = 0.0
    compare_s: float = 0.0
    flush_s: float = 0.0
    ratio: float | None = None

    def of_runs(self, size: float) -> float:
        """Return the bytes a second of pages in runs of `size` bytes each."""
        return size / (size / self.bytes_per_s + self.run_s)


@dataclass(frozen=True)
class Question:
    """A question to the model.

    Attributes:
        bandwidth: bytes per second.
        downtime_s: the goal; None: the policy's own.
        policy: name of the policy.
        memory: bytes that the first pass copies; None: as observed.
        zero: bytes of zero pages among them; None: as observed.
        last_bandwidth: see simulate().
        stop_cost_s: the fixed part of a stop; None: as measured.
        copier: what redirty's copier reaches; None: not measured, the link alone limits it.
        start_s: time before the first pass; None: not measured, as long as between passes.
        stop_steps: what the steps of a stop take; None: not measured.
        compression: how many times smaller compression makes a page.
        unit: in which the bandwidth was given, for display.
    """

    bandwidth: float
    downtime_s: float | None = None
    policy: str = "redirty"
    memory: float | None = None
    zero: float | None = None
    last_bandwidth: float | None = None
    stop_cost_s: float | None = None
    unit: RateUnit | None = None
    compression: float = 1.0
    copier: CopierSpeed | None = None
    start_s: float | None = None
    stop_steps: StopSteps | None = None

    def policy_for(
        self, downtime_s: float | None, boundary_s: float, busy: float | None = None
    ) -> Policy:
        """Return the policy with another goal. boundary_s: see Policy; busy: see Observations.

        A stop includes a boundary, so a boundary takes no longer than a stop is said to take.

        Raises: UsageError for an unknown policy.
        """
        stop_s = self.stop_cost_s
        if stop_s is not None:
            boundary_s = min(boundary_s, stop_s)
        elif self.stop_steps is not None:
            stop_s = self.stop_steps.total_s
        policy = policy_of(self.policy, downtime_s, boundary_s, stop_s)
        if self.start_s is not None:
            policy = replace(policy, start_s=self.start_s)  # type: ignore[type-var]
        if policy.throttle is not None and busy is not None:
            policy = replace(policy, throttle=replace(policy.throttle, busy=busy))  # type: ignore[type-var]
        return policy


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        question, fit, policy, memory: what the answer is based on.
        middle: the expected outcome.
        low, high: the outcomes with the fewest and the most pages written, in quiet and in busy moments, or, near
            the critical bandwidth, with a bandwidth that is 10 % away.
    """

    question: Question
    fit: Fit
    policy: Policy
    memory: Memory
    middle: Outcome
    low: Outcome
    high: Outcome

    def policy_for(self, downtime_s: float | None) -> Policy:
        """Return the policy with another goal."""
        return self.question.policy_for(downtime_s, self.fit.stop.usual_s, self.fit.busy)

    @property
    def verdict(self) -> str:
        """CONVERGES, DOES_NOT or UNCERTAIN, the latter when the ends of the interval disagree."""
        if self.low.converges and self.high.converges:
            return CONVERGES
        return UNCERTAIN if self.low.converges or self.middle.converges else DOES_NOT
