"""Verdicts, right or wrong: a prediction about a migration, and the result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.bench.migration.results import Load, Predicted, Real

PLAIN = "qemu"
NEAR = 0.10  # of the critical bandwidth: where no verdict is required
YES, NO, UNCERTAIN, NONE = "yes", "no", "uncertain", "-"


@dataclass(frozen=True)
class Comparison:
    """A migration and its prediction."""

    load: Load
    real: Real
    predicted: Predicted | None
    patience_s: float

    @property
    def prediction(self) -> Predicted:
        """The prediction; where there is none, an empty one."""
        return self.predicted or Predicted(self.load.workload, self.real.bandwidth)

    @property
    def times_critical(self) -> float:
        """The bandwidth as a multiple of the critical one."""
        return self.real.bandwidth / self.load.critical_bytes_per_s

    @property
    def near(self) -> bool:
        """True if it is so near the critical bandwidth of a plain migration that the verdict may be left open."""
        return self.real.policy == PLAIN and abs(self.times_critical - 1) <= NEAR

    @property
    def predicted_verdict(self) -> str:
        """The predicted verdict: yes, no, uncertain; or - where there is no prediction."""
        return verdict(self.prediction, self.patience_s)

    @property
    def happened(self) -> str:
        """The result: yes, no."""
        return YES if self.real.converged else NO

    @property
    def wrong(self) -> bool:
        """True if the prediction was definite and the result the opposite."""
        return self.predicted_verdict in (YES, NO) and self.predicted_verdict != self.happened

    @property
    def total_error(self) -> float | None:
        """Predicted time over real one, less 1. None unless both have an end."""
        return self._error(self.prediction.total_s, self.real.total_s)

    @property
    def bytes_error(self) -> float | None:
        """Predicted bytes sent over real ones, less 1."""
        return self._error(self.prediction.transferred_bytes, self.real.transferred_bytes)

    @property
    def downtime_error(self) -> float | None:
        """Predicted downtime over the real one, less 1."""
        return self._error(self.prediction.downtime_s, self.real.downtime_s)

    def _error(self, predicted: float | None, found: float | None) -> float | None:
        if not self.real.converged or not predicted or not found or not math.isfinite(predicted):
            return None
        return predicted / found - 1


def verdict(predicted: Predicted, patience_s: float) -> str:
    """Return whether the prediction is that the migration ends within the patience, as a real one gets no more.

    Uncertain when that holds at one end of its interval only.
    """
    if predicted.total_s is None:
        return NONE
    low, high = predicted.low_total_s, predicted.high_total_s
    ends = [predicted.total_s if end is None else end for end in (low, high)]
    within = [end <= patience_s for end in (*ends, predicted.total_s)]
    if all(within):
        return YES
    return UNCERTAIN if any(within) else NO


def compare(
    loads: Sequence[Load], reals: Sequence[Real], predicted: Sequence[Predicted], patience_s: float
) -> list[Comparison]:
    """Pair each migration with the last prediction made for it."""
    by_name = {load.workload: load for load in loads}
    predictions = {(p.workload, p.bandwidth, p.policy): p for p in predicted}
    return [
        Comparison(
            by_name[r.workload],
            r,
            predictions.get((r.workload, r.bandwidth, r.policy)),
            patience_s,
        )
        for r in reals
    ]


@dataclass(frozen=True)
class Summary:
    """Medians of absolute errors, None where there are none, and counts of verdicts."""

    migrations: int
    predictions: int
    total_error: float | None
    bytes_error: float | None
    downtime_error: float | None
    compared: int
    wrong_far: int
    wrong_near: int
    uncertain_far: int
    uncertain_near: int
    guests_wrong: int


def summary(rows: Sequence[Comparison]) -> Summary:
    """Summarize all comparisons."""
    return Summary(
        migrations=len(rows),
        predictions=sum(row.predicted_verdict != NONE for row in rows),
        total_error=_middle(row.total_error for row in rows),
        bytes_error=_middle(row.bytes_error for row in rows),
        downtime_error=_middle(row.downtime_error for row in rows),
        compared=sum(row.total_error is not None for row in rows),
        wrong_far=sum(row.wrong and not row.near for row in rows),
        wrong_near=sum(row.wrong and row.near for row in rows),
        uncertain_far=sum(row.predicted_verdict == UNCERTAIN and not row.near for row in rows),
        uncertain_near=sum(row.predicted_verdict == UNCERTAIN and row.near for row in rows),
        guests_wrong=sum(bool(row.real.guest_wrong) for row in rows),
    )


def _middle(errors: Iterable[float | None]) -> float | None:
    there = [abs(error) for error in errors if error is not None]
    return statistics.median(there) if there else None
