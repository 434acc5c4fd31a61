"""Decisions between passes, and the choice of pages that are deferred."""

from __future__ import annotations

import numpy as np
from redirty.collector.mirror.decision import (
    GIVE_UP,
    PASS,
    QUIESCE,
    Goals,
    Situation,
    advise,
    decide,
)
from redirty.collector.mirror.deferral import cold_first, defer, redirty_probability
from redirty.collector.pageset import from_pages

# ---- decisions ----


def situation(
    *left: float,
    rate: float = 100.0,
    fixed_s: float = 0.0,
    elapsed_s: float = 0.0,
    stops: int = 0,
) -> Situation:
    return Situation(len(left), left, rate, fixed_s, elapsed_s, stops)


def test_each_situation_has_its_decision() -> None:
    goals = Goals(0.2)
    assert decide(goals, situation(19)).action == QUIESCE
    assert decide(goals, situation(21)).action == PASS
    assert decide(goals, situation(19, fixed_s=0.05)).action == PASS
    assert decide(goals, situation(1, fixed_s=0.3)).action == PASS, "it may have been a busy moment"
    assert decide(goals, situation(1, 1, 1, fixed_s=0.3, stops=1)).action == GIVE_UP
    assert decide(goals, situation(90, 80, 70, 60, 50, 40, 30)).action == PASS
    stuck = decide(goals, situation(30, *[30] * 6))
    assert stuck.action == GIVE_UP and "did not reduce" in stuck.reason
    assert decide(Goals(None, passes=3), situation(1e9, 1e9)).action == PASS
    assert decide(Goals(None, passes=3), situation(1e9, 1e9, 1e9)).action == QUIESCE
    assert decide(Goals(0.2, passes=1), situation(1e9)).action == GIVE_UP
    assert decide(Goals(0.2, deadline_s=5), situation(30, elapsed_s=5)).action == GIVE_UP
    assert decide(Goals(None, deadline_s=5), situation(100, elapsed_s=1)).action == PASS
    assert decide(Goals(None, deadline_s=5), situation(100, elapsed_s=4.5)).action == QUIESCE
    assert "200.0 ms" in decide(goals, situation(21)).reason


def test_advice_names_the_downtime_and_the_bandwidth_that_suffice() -> None:
    advice = advise(Goals(0.2), 40.0, situation(50, 40, 45))
    assert "--downtime 440ms" in advice and "1.8 kbit/s" in advice, advice


def test_hot_pages_are_deferred_if_they_used_to_be_dirtied_again() -> None:
    hot, cold = (from_pages(np.arange(a, b, dtype=np.uint64)) for a, b in ((0, 10), (100, 110)))
    rounds = [[hot | cold, hot, hot]]
    assert redirty_probability(rounds) == 1.0
    (kept,) = defer(rounds, [hot | cold], 100)
    assert kept == hot
    (kept,) = defer(rounds, [hot | cold], 4)
    assert len(kept) == 4
    assert redirty_probability([[cold, hot, hot]]) == 0.0
    assert len(defer([[cold, hot, hot]], [hot], 100)[0]) == 0
    first, then = cold_first(rounds[0], hot | cold)
    assert (first, then) == (cold, hot)


def test_what_only_seems_to_take_too_long_is_tried_once() -> None:
    """The boundaries were measured while the target ran; a stop is ended when the goal has passed."""
    goals = Goals(downtime_s=0.2)
    tried = decide(goals, situation(1, 1, 1, fixed_s=0.5))
    assert tried.action == QUIESCE and tried.reason.endswith("one stop will tell")
    assert decide(goals, situation(1, 1, 1, fixed_s=0.5, stops=1)).action == GIVE_UP
    assert decide(goals, situation(1, 1, 1, fixed_s=0.61)).action == GIVE_UP, "hopeless"
    sending = situation(30, 30, 30, fixed_s=0.5)
    assert decide(goals, sending).action == GIVE_UP, "sending alone takes longer"
    stuck = [10.0] * 8
    assert decide(goals, situation(*stuck, fixed_s=0.15)).action == QUIESCE
    assert decide(goals, situation(*stuck, fixed_s=0.15, stops=1)).action == GIVE_UP
    assert decide(goals, situation(*([25.0] * 8), fixed_s=0.15)).action == GIVE_UP
