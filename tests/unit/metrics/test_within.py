"""W(1 s) is the same whatever the length of the rounds."""

from __future__ import annotations

import numpy as np
import pytest
from redirty.collector.metrics.within import WrittenWithin
from redirty.collector.metrics.write_curves import Point, WindowCurves

from tests.support.factories import one_round, pages


def written(first_s: float, end_s: float) -> set[int]:
    """Return the pages that a writer of 40 pages a second over 100 pages writes in a time, 16 ... 115."""
    return {16 + n % 100 for n in range(int(first_s * 40), int(end_s * 40))}


@pytest.mark.parametrize("length_s", [0.1, 0.25, 0.3, 0.5, 0.75, 1.0])
def test_by_windows_of_short_rounds(length_s: float) -> None:
    windows, within = WindowCurves(), WrittenWithin()
    found = []
    for number in range(40):
        log = pages(*written(number * length_s, (number + 1) * length_s))
        result = one_round(number, log=log, missed=pages(), present=pages())
        object.__setattr__(result, "duration_s", length_s)
        found.append(within.add(windows.add(result).points))
    known = [pages for pages in found if pages is not None]
    assert len(known) >= 40 - 1.6 / length_s, "after at most one window"
    assert known == pytest.approx([40] * len(known), abs=1.01)


@pytest.mark.parametrize("length_s", [1.5, 4.0, 16.0])
def test_inside_long_rounds(length_s: float) -> None:
    within = WrittenWithin()
    times = np.geomspace(0.01, length_s, 50)
    for number in range(3):
        inside = [Point(number, 0, "", t, 300 * t, None) for t in times[:-1].tolist()]
        end = Point(number, 1, "", length_s, 300 * length_s + 7, 0, 7)
        others = [Point(number, 1, "anon_private", length_s, 5, 0)]
        assert within.add([*inside, end, *others]) == pytest.approx(300)


def test_raced_pages_do_not_count() -> None:
    assert WrittenWithin(2.0).add([Point(0, 1, "", 2.0, 50, 0, 10)]) == 40
    assert WrittenWithin(2.0).add([Point(0, 1, "", 1.9, 50, 0, 10)]) is None


def test_windows_without_end_are_forgotten() -> None:
    within = WrittenWithin()
    for number in range(5000):
        within.add([Point(number, 1, "", 0.1, 1, 0)])
    assert len(within._before) < 300
