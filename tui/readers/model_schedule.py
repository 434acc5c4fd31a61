"""Runs the convergence model for a reader, at most as often as a share of a CPU allows."""

from __future__ import annotations

import time
from collections.abc import Callable

from redirty.collector.model.observations import Observations
from redirty.tui.snapshots.convergence import Convergence, ConvergenceQuestion, convergence
from redirty.tui.snapshots.history import MappingTable

_CPU_SHARE = 0.01  # of a CPU, for the model while rounds go by


class ModelSchedule:
    """Keeps the latest prediction and decides when to compute a new one.

    A changed question is answered at once; otherwise the model runs again only once it has used less
    than 1 % of a CPU since its last run.

    """

    def __init__(self) -> None:
        self._latest: Convergence | None = None
        self._due_s = 0.0  # time.monotonic()

    def expire(self) -> None:
        """Make the next run of the model due now."""
        self._due_s = 0.0

    def answer(
        self,
        observe: Callable[[], Observations | None],
        mappings: MappingTable,
        question: ConvergenceQuestion,
        *,
        force: bool,
    ) -> Convergence | None:
        """Return the prediction for a question; None before the first round.

        Args:
            observe: returns the rounds so far.
            mappings: recently written mappings, one of which the verdict may name.
            question: bandwidth, downtime and policy.
            force: run the model even if it is not due, and whatever it said before.
        """
        old = self._latest
        answered = old is not None and old.question == question
        if answered and not force and time.monotonic() < self._due_s:
            return old
        observed = observe()
        if observed is None:
            return None
        before = old if answered and not force else None
        started = time.thread_time()
        self._latest = convergence(observed, question, mappings, before)
        used = time.thread_time() - started
        self._due_s = time.monotonic() + used / _CPU_SHARE
        return self._latest
