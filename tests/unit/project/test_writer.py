"""The known-rate writer writes as many distinct pages as the closed form of its pattern says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workloads.driver import Writer, expected_distinct
from tests.workloads.timed import PATTERNS

RATE, PAGES = 6_000, 4_000


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seconds", [1, 2])
def test_distinct_pages_follow_the_closed_form(pattern: str, seconds: int) -> None:
    with Writer(mib=16) as writer:
        done = writer.run(pattern, RATE, PAGES, seconds)
    assert done.writes == RATE * seconds
    expected = expected_distinct(pattern, RATE, PAGES, seconds)
    # Within four standard deviations of the draws.
    assert done.distinct == pytest.approx(expected, abs=4 * np.sqrt(PAGES / 4))


def test_too_few_pages_to_divide_are_all_hot() -> None:
    with Writer(mib=1) as writer:
        assert writer.run("hot_cold", 1_000, 3, 1).distinct == 3


def test_a_burst_fills_a_quarter_of_a_second() -> None:
    def expected(seconds: float) -> float:
        return expected_distinct("bursty", RATE, PAGES, seconds)

    assert expected(1) == PAGES, "a second has all its writes, wherever it starts"
    assert expected(0.01) == pytest.approx(RATE * 0.01, rel=0.01), "on average"
    # Three quarters of a second: they may start at the burst's end and miss all of it.
    assert expected_distinct("bursty", RATE, 10**9, 0.75) == pytest.approx(RATE * 0.75, rel=0.01)
    with pytest.raises(ValueError):
        expected_distinct("x", 1, 1, 1)
