"""Runs the convergence model for a reader, at most as often as a share of a CPU allows."""

from __future__ import annotations

import time
from dataclasses import replace

from redirty.collector.model.observations import Layout
from redirty.tui.snapshots.convergence import Convergence, ConvergenceQuestion, convergence
from redirty.tui.snapshots.history import History, MappingTable

_CPU_SHARE = 0.01  # of a CPU, for the model while rounds go by


class ModelSchedule:
    """Keeps the latest prediction and decides when to compute a new one.

    A changed question is answered at once; otherwise the model runs again only once it has used less
    than 1 % of a CPU since its last run.

    Attributes:
        first_round: number of the first round that the model may use; earlier ones had another length.
        layout: layout of the target's memory; None unless zero pages were counted.
    """

    def __init__(self) -> None:
        self.first_round = 0
        self.layout: Layout | None = None
        self._latest: Convergence | None = None
        self._due_s = 0.0  # time.monotonic()

    def answer(
        self,
        history: History,
        mappings: MappingTable,
        question: ConvergenceQuestion,
        *,
        force: bool,
    ) -> Convergence | None:
        """Return the prediction for a question; None before the first round.

        Args:
            history: the rounds so far.
            mappings: recently written mappings, one of which the verdict may name.
            question: bandwidth, downtime and policy.
            force: run the model even if it is not due.
        """
        old = self._latest
        answered = old is not None and old.question == question
        if answered and not force and time.monotonic() < self._due_s:
            return old
        last = history.last
        first = self.first_round if last is None else min(self.first_round, last.number)
        observed = history.observed(first)
        if observed is None:
            return None
        started = time.thread_time()
        self._latest = convergence(replace(observed, layout=self.layout), question, mappings)
        used = time.thread_time() - started
        self._due_s = time.monotonic() + used / _CPU_SHARE
        return self._latest
