"""Estimates of a mirror in progress: rate, remaining time, downtime, batch size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from redirty.collector.cli.output.mirror_progress import progress_line
from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.observer import PassReport, ProgressReport
from redirty.collector.mirror.pipeline import BATCH_PAGES, PassCounts, batch_pages
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.transport.destination import Destination
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.rounds import Round

MIB = 1 << 20
PAGES = 25_600  # 100 MiB


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def make_estimator(goals: Goals, per_s: float) -> tuple[Estimator, Clock]:
    """Make an estimator for a target that writes `per_s` distinct pages a second from the start of the clock."""
    clock = Clock()
    request = MirrorRequest(
        cast(TargetSet, None), cast(Destination, None), goals, bandwidth=20 * MIB
    )
    return Estimator(request, lambda: int((clock.now - 50) * per_s), clock), clock


def progress_after(
    estimator: Estimator, clock: Clock, seconds: float, counts: PassCounts, sent_bytes: int
) -> ProgressReport:
    clock.now = 50.0 + seconds
    found = estimator.progress(counts, sent_bytes)
    assert found is not None
    return found


def test_the_first_pass_predicts_the_end() -> None:
    """Passes shrink to a quarter each: 5 s for all pages at 20 MiB/s, and 1280 pages/s are 5 MiB/s."""
    estimator, clock = make_estimator(Goals(0.1), 1280)
    estimator.start_pass(1, PAGES, 0)
    assert estimator.progress(PassCounts(), 0) is None, "nothing is known yet"
    found = progress_after(estimator, clock, 2.0, PassCounts(pages=10_240), 40 * MIB)
    assert (found.done_pages, found.pages, found.rate) == (10_240, PAGES, 20 * MIB)
    assert found.dirty_per_s == pytest.approx(5 * MIB, rel=0.01)
    assert estimator.progress(PassCounts(), 40 * MIB) is None, "the last report is recent"
    total_s = 5 * (1 + 1 / 4 + 1 / 16 + 1 / 64)
    assert found.left_s == pytest.approx(total_s - 2, rel=0.2), "less, as pages may be unchanged"
    assert found.downtime_s is not None and found.downtime_s < 0.1
    line = progress_line(found)
    assert line.startswith("pass 1: 40% of 100.0 MiB, 167.8 Mbit/s, dirty 5.0 MiB/s, "), line
    assert "left, downtime" in line


def test_a_mirror_that_does_not_converge_has_no_predicted_end() -> None:
    estimator, clock = make_estimator(Goals(0.1), 12_800)  # 50 MiB/s
    estimator.start_pass(1, PAGES, 0)
    found = progress_after(estimator, clock, 2.0, PassCounts(pages=10_240), 40 * MIB)
    assert (found.left_s, found.downtime_s) == (None, None)
    assert progress_line(found) == "pass 1: 40% of 100.0 MiB, 167.8 Mbit/s, dirty 50.0 MiB/s"


def test_a_fixed_number_of_passes_ends_whatever_is_written() -> None:
    estimator, clock = make_estimator(Goals(None, passes=1), 5120)
    estimator.start_pass(1, PAGES, 0)
    found = progress_after(estimator, clock, 2.5, PassCounts(pages=12_800), 50 * MIB)
    assert found.left_s == pytest.approx(2.5 + 5, rel=0.02), (
        "then everything once more, with the target stopped"
    )
    assert found.downtime_s == pytest.approx(5, rel=0.02)


def test_stopping_takes_a_boundary_the_reread_and_the_writes_until_then() -> None:
    """The shortest of the last boundaries counts."""
    estimator, _ = make_estimator(Goals(0.1), 0)
    estimator.end_pass(1, PassCounts(pages=PAGES, sent_pages=PAGES), 100 * MIB, 10.0)
    assert estimator.rate == 10 * MIB
    report = PassReport(1, PassCounts(), 100 * MIB, 10.0, dirty_pages=5000)
    result = cast(Round, SimpleNamespace(duration_s=10.0))
    estimator.end_round(report, result, 0.5, 2560, 0)
    estimator.end_round(report, result, 0.02, 2560, 0)
    meanwhile_s = 0.02 * 1 / 10  # 1 MiB/s of newly dirty pages, at 10 MiB/s
    assert estimator.fixed_s == pytest.approx(0.02 + meanwhile_s)
    estimator.end_round(report, result, 0.04, 0, 400_000_000)
    assert estimator.fixed_s == pytest.approx(0.02 + 0.1)
    for _ in range(2):
        estimator.end_round(report, result, 0.04, 0, 0)
    assert estimator.fixed_s == pytest.approx(0.04)


def test_a_short_pass_does_not_change_the_rate() -> None:
    estimator, _ = make_estimator(Goals(0.1), 0)
    assert estimator.link_rate == 20 * MIB, "the limit, before anything was measured"
    estimator.end_pass(1, PassCounts(pages=PAGES, sent_pages=PAGES), 100 * MIB, 10.0)
    estimator.end_pass(2, PassCounts(pages=10, sent_pages=10), 40_960, 1.0)
    assert estimator.rate == estimator.link_rate == 10 * MIB
    estimator.end_pass(3, PassCounts(pages=PAGES, sent_pages=PAGES), 100 * MIB, 1.0)
    assert estimator.rate == 20 * MIB, "never above the limit"


def test_batches_are_large_enough_not_to_be_the_bottleneck() -> None:
    """Batches that are too small would make each pass slower than the one before on a busy machine."""
    estimator, _ = make_estimator(Goals(0.1), 0)
    assert estimator.batch_overhead_s == 0.0
    assert batch_pages(20 * MIB, estimator.batch_overhead_s) == 25, "5 ms of the link"
    counts = PassCounts(pages=PAGES, sent_pages=PAGES, batches=100, link_s=9.9)
    estimator.end_pass(1, counts, 100 * MIB, 10.0)
    assert batch_pages(20 * MIB, estimator.batch_overhead_s) == 25, "1 ms is overhead"
    counts = PassCounts(pages=PAGES, sent_pages=PAGES, batches=100, link_s=9.0)
    estimator.end_pass(2, counts, 100 * MIB, 10.0)
    assert batch_pages(20 * MIB, estimator.batch_overhead_s) == 204, "10 ms are overhead"
    assert batch_pages(200 * MIB, 1.0) == BATCH_PAGES
    assert batch_pages(1.0, 0.0) == 16
