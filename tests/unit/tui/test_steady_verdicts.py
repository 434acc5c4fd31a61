"""Verdicts of a screen under a constant load: they stay the same, or are uncertain."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from redirty.collector.metrics.observed_rounds import ObservedRounds
from redirty.collector.model.fit import fit
from redirty.collector.model.observations import Observations
from redirty.collector.model.predict import forecast
from redirty.collector.model.thresholds import min_bandwidth
from redirty.tui.readers.model_schedule import ModelSchedule
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import History

from tests.support.written_rounds import Process, Writes, cyclic, make_rounds, skewed, uniform

LOADS = {
    "uniform": uniform(3000, 5000.0),
    "hot and cold": skewed(5000, 9000.0),
    "cyclic": cyclic(3000, 4000.0),
}
NO_MAPPINGS = History().mappings()


def observed(writes: Writes, lengths: list[float]) -> Observations:
    """Return rounds of a constant load on a machine with busy moments, which also write more or less."""
    rng = np.random.default_rng(3)
    boundaries = (0.004 + 0.02 * rng.random(len(lengths)) ** 3).tolist()
    collected = ObservedRounds()
    for one in make_rounds([Process(writes, 6000)], lengths, boundaries):
        collected.add(one, one.boundary_s)
    return collected.observations()


def goods(seen: Observations, question: ConvergenceQuestion) -> list[bool | None]:
    """Return what a live screen says as rounds go by, from the fifth on."""
    schedule = ModelSchedule()
    found = []
    for count in range(5, seen.rounds + 1, 5):
        schedule.expire()
        shown = schedule.answer(lambda n=count: seen.until(n), NO_MAPPINGS, question, force=False)  # type: ignore[misc]
        assert shown is not None
        found.append(shown.good)
    return found


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("times", [0.6, 0.88, 0.95, 1.0, 1.07, 1.12, 1.5])
def test_a_verdict_of_a_constant_load_stays(name: str, times: float) -> None:
    seen = observed(LOADS[name], [0.25] * 100)
    known = forecast(seen, ConvergenceQuestion(1e9).for_model())
    critical = min_bandwidth(known.memory, known.fit.curve, known.policy)
    assert critical is not None
    found = goods(seen, ConvergenceQuestion(critical * times))
    assert not {True, False} <= set(found), "both verdicts"
    assert sum(a is not b for a, b in pairwise(found)) <= 1
    if times in (0.6, 1.5):
        assert set(found) == {times > 1}


@pytest.mark.parametrize("name", LOADS)
def test_rounds_that_were_lengthened_are_no_change_of_the_load(name: str) -> None:
    """A longer round has fewer distinct pages a second: that is no other load, and all rounds count."""
    seen = observed(LOADS[name], [0.1] * 24 + [0.5] * 26)
    for count in (25, 26, 30, 40, 50):
        found = fit(seen.until(count))
        assert (found.changes, found.rounds) == ((), count)
        assert not any("single round" in note for note in found.notes)


def test_a_load_that_does_change_is_found_in_rounds_of_any_length() -> None:
    lengths = [0.1] * 20 + [0.4] * 20
    collected = ObservedRounds()
    rounds = make_rounds(
        [Process(LOADS["uniform"], 6000)],
        lengths,
        [0.004] * 40,
        changes=lambda n, writes: writes if n < 30 else uniform(3000, 1000.0),
    )
    for one in rounds:
        collected.add(one, one.boundary_s)
    assert fit(collected.observations()).changes == (30,)


def test_one_verdict_turns_into_the_other_by_way_of_uncertain() -> None:
    slow, fast = observed(uniform(3000, 500.0), [0.25] * 8), observed(LOADS["cyclic"], [0.25] * 8)
    schedule, question = ModelSchedule(), ConvergenceQuestion(6e6)
    said = []
    for seen in (slow, fast, fast):
        schedule.expire()
        found = schedule.answer(lambda s=seen: s, NO_MAPPINGS, question, force=False)  # type: ignore[misc]
        assert found is not None
        said.append((found.good, found.verdict.split()[0]))
    assert said == [(True, "converges"), (None, "uncertain:"), (False, "will")]
