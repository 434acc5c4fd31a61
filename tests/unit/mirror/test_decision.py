"""What is decided between passes, and which pages wait."""

from __future__ import annotations

import numpy as np
from redirty.collector.mirror.decision import (
    GIVE_UP,
    PASS,
    QUIESCE,
    Goals,
    Situation,
    decide,
    would_do,
)
from redirty.collector.mirror.deferral import again, cold_first, hold_back
from redirty.collector.pageset import from_pages

# ---- decisions ----


def standing(
    *left: float, rate: float = 100.0, fixed_s: float = 0.0, elapsed_s: float = 0.0
) -> Situation:
    return Situation(len(left), left, rate, fixed_s, elapsed_s)


def test_decisions() -> None:
    goals = Goals(0.2)
    assert decide(goals, standing(19)).action == QUIESCE
    assert decide(goals, standing(21)).action == PASS
    assert decide(goals, standing(19, fixed_s=0.05)).action == PASS
    assert decide(goals, standing(1, fixed_s=0.3)).action == GIVE_UP
    assert decide(goals, standing(90, 80, 70, 60, 50, 40, 30)).action == PASS
    stuck = decide(goals, standing(30, *[30] * 6))
    assert stuck.action == GIVE_UP and "no less" in stuck.reason
    assert decide(Goals(None, passes=3), standing(1e9, 1e9)).action == PASS
    assert decide(Goals(None, passes=3), standing(1e9, 1e9, 1e9)).action == QUIESCE
    assert decide(Goals(0.2, passes=1), standing(1e9)).action == GIVE_UP
    assert decide(Goals(0.2, deadline_s=5), standing(30, elapsed_s=5)).action == GIVE_UP
    assert decide(Goals(None, deadline_s=5), standing(100, elapsed_s=1)).action == PASS
    assert decide(Goals(None, deadline_s=5), standing(100, elapsed_s=4.5)).action == QUIESCE
    assert "200.0 ms" in decide(goals, standing(21)).reason


def test_what_would_do() -> None:
    said = would_do(Goals(0.2), 40.0, standing(50, 40, 45))
    assert "--downtime 440ms" in said and "1.8 kbit/s" in said, said


def test_hot_pages_are_held_back_when_they_are_sure_to_come_again() -> None:
    hot, cold = (from_pages(np.arange(a, b, dtype=np.uint64)) for a, b in ((0, 10), (100, 110)))
    rounds = [[hot | cold, hot, hot]]
    assert again(rounds) == 1.0
    (kept,) = hold_back(rounds, [hot | cold], 100)
    assert kept == hot
    (kept,) = hold_back(rounds, [hot | cold], 4)
    assert len(kept) == 4
    assert again([[cold, hot, hot]]) == 0.0
    assert len(hold_back([[cold, hot, hot]], [hot], 100)[0]) == 0
    first, then = cold_first(rounds[0], hot | cold)
    assert (first, then) == (cold, hot)
