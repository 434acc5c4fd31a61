"""A question to the model and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from redirty.collector.model.fit import Fit
from redirty.collector.model.policy import Policy, policy_of
from redirty.collector.model.simulation import (
    Memory,
    Outcome,
)

CONVERGES, DOES_NOT, UNCERTAIN = "converges", "does not converge", "uncertain"


@dataclass(frozen=True)
class Question:
    """bandwidth: bytes per second. downtime_s: the goal, None: the policy's own. memory, zero: bytes
    copied first, and of those zero pages; None: what is known of them. last_bandwidth: see simulate()."""

    bandwidth: float
    downtime_s: float | None = None
    policy: str = "redirty"
    memory: float | None = None
    zero: float | None = None
    last_bandwidth: float | None = None

    def policy_for(self, downtime_s: float | None, boundary_s: float) -> Policy:
        """The policy with another goal. boundary_s: see Policy. Errors: UsageError."""
        return policy_of(self.policy, downtime_s, boundary_s)


@dataclass(frozen=True)
class Answer:
    """middle: what is to be expected; low, high: with the fewest and most pages written, or, near the
    bandwidth at which it begins to converge, what comes of one that is 10 % away."""

    question: Question
    fit: Fit
    policy: Policy
    memory: Memory
    middle: Outcome
    low: Outcome
    high: Outcome

    def policy_for(self, downtime_s: float | None) -> Policy:
        """The policy with another goal."""
        return self.question.policy_for(downtime_s, self.fit.boundary_s)

    @property
    def verdict(self) -> str:
        """Whether the target can be stopped within the downtime; UNCERTAIN when both ends of the
        interval differ in it."""
        if self.low.converges and self.high.converges:
            return CONVERGES
        return UNCERTAIN if self.low.converges or self.middle.converges else DOES_NOT
