"""What a mirror says of itself while it goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from redirty.collector.cli.mirror_progress import going_line
from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.observer import PassReport, ProgressReport
from redirty.collector.mirror.pipeline import BATCH_PAGES, PassCounts, batch_pages
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.rounds import Round

MIB = 1 << 20
PAGES = 25_600  # 100 MiB


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def outlook(goals: Goals, per_s: float) -> tuple[Estimator, Clock]:
    """Of a target that writes so many pages a second, each another one; since the clock began."""
    clock = Clock()
    wish = MirrorRequest(cast(TargetSet, None), goals, bandwidth=20 * MIB)
    return Estimator(wish, lambda: int((clock.now - 50) * per_s), clock), clock


def after(
    look: Estimator, clock: Clock, seconds: float, counts: PassCounts, sent: int
) -> ProgressReport:
    clock.now = 50.0 + seconds
    found = look.going(counts, sent)
    assert found is not None
    return found


def test_in_the_first_pass_it_is_known_already_when_it_will_end() -> None:
    """5 s for all at 20 MiB/s; 1280 pages/s are 5 MiB/s, so each pass takes a quarter of the one before."""
    look, clock = outlook(Goals(0.1), 1280)
    look.passing(1, PAGES, 0)
    assert look.going(PassCounts(), 0) is None, "nothing is known yet"
    found = after(look, clock, 2.0, PassCounts(pages=10_240), 40 * MIB)
    assert (found.done_pages, found.pages, found.rate) == (10_240, PAGES, 20 * MIB)
    assert found.dirty_per_s == pytest.approx(5 * MIB, rel=0.01)
    assert look.going(PassCounts(), 40 * MIB) is None, "told a moment ago"
    again = 5 * (1 + 1 / 4 + 1 / 16 + 1 / 64)
    assert found.left_s == pytest.approx(again - 2, rel=0.2), "less, for what is found unchanged"
    assert found.downtime_s is not None and found.downtime_s < 0.1
    line = going_line(found)
    assert line.startswith("pass 1: 40% of 100.0 MiB, 167.8 Mbit/s, dirty 5.0 MiB/s, "), line
    assert "left, downtime" in line


def test_what_will_not_end_has_no_end() -> None:
    look, clock = outlook(Goals(0.1), 12_800)  # 50 MiB/s
    look.passing(1, PAGES, 0)
    found = after(look, clock, 2.0, PassCounts(pages=10_240), 40 * MIB)
    assert (found.left_s, found.downtime_s) == (None, None)
    assert going_line(found) == "pass 1: 40% of 100.0 MiB, 167.8 Mbit/s, dirty 50.0 MiB/s"


def test_a_set_number_of_passes_ends_whatever_is_written() -> None:
    look, clock = outlook(Goals(None, passes=1), 5120)
    look.passing(1, PAGES, 0)
    found = after(look, clock, 2.5, PassCounts(pages=12_800), 50 * MIB)
    assert found.left_s == pytest.approx(2.5 + 5, rel=0.02), "then all of it once more, stopped"
    assert found.downtime_s == pytest.approx(5, rel=0.02)


def test_what_stopping_takes() -> None:
    """The shortest of the last boundaries, what is read again, and what is written until it stands still."""
    look, _ = outlook(Goals(0.1), 0)
    look.sent(1, PassCounts(pages=PAGES, sent_pages=PAGES), 100 * MIB, 10.0)
    assert look.rate == 10 * MIB
    done = PassReport(1, PassCounts(), 100 * MIB, 10.0, dirty_pages=5000)
    result = cast(Round, SimpleNamespace(duration_s=10.0))
    look.bounded(done, result, 0.5, 2560, 0)
    look.bounded(done, result, 0.02, 2560, 0)
    meanwhile_s = 0.02 * 1 / 10  # 1 MiB/s of others than before, at 10 MiB/s
    assert look.fixed_s == pytest.approx(0.02 + meanwhile_s)
    look.bounded(done, result, 0.04, 0, 400_000_000)
    assert look.fixed_s == pytest.approx(0.02 + 0.1)
    for _ in range(2):
        look.bounded(done, result, 0.04, 0, 0)
    assert look.fixed_s == pytest.approx(0.04)


def test_a_short_pass_does_not_change_what_is_known_of_the_rate() -> None:
    look, _ = outlook(Goals(0.1), 0)
    assert look.link_rate == 20 * MIB, "before anything is known, the limit"
    look.sent(1, PassCounts(pages=PAGES, sent_pages=PAGES), 100 * MIB, 10.0)
    look.sent(2, PassCounts(pages=10, sent_pages=10), 40_960, 1.0)
    assert look.rate == look.link_rate == 10 * MIB
    look.sent(3, PassCounts(pages=PAGES, sent_pages=PAGES), 100 * MIB, 1.0)
    assert look.rate == 20 * MIB, "never above the limit"


def test_batches_are_not_so_small_that_we_are_the_limit() -> None:
    """On a machine that is slow or busy, or each pass would be slower than the one before."""
    look, _ = outlook(Goals(0.1), 0)
    assert look.own_s == 0.0
    assert batch_pages(20 * MIB, look.own_s) == 25, "5 ms of the link"
    counts = PassCounts(pages=PAGES, sent_pages=PAGES, batches=100, link_s=9.9)
    look.sent(1, counts, 100 * MIB, 10.0)
    assert batch_pages(20 * MIB, look.own_s) == 25, "1 ms is our own"
    counts = PassCounts(pages=PAGES, sent_pages=PAGES, batches=100, link_s=9.0)
    look.sent(2, counts, 100 * MIB, 10.0)
    assert batch_pages(20 * MIB, look.own_s) == 204, "10 ms are"
    assert batch_pages(200 * MIB, 1.0) == BATCH_PAGES
    assert batch_pages(1.0, 0.0) == 16
