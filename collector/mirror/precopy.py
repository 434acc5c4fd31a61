"""Pre-copy: pass after pass, until the downtime goal can be met or it is clear that it cannot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.collector.mirror.decision import (
    GIVE_UP,
    PASS,
    QUIESCE,
    Decision,
    Situation,
    advise,
    decide,
)
from redirty.collector.mirror.deferral import cold_first, defer
from redirty.collector.mirror.image.page_store import MAX_WINDOWS
from redirty.collector.mirror.observer import PassReport
from redirty.collector.mirror.pipeline import Job, PassCounts, batch_pages
from redirty.collector.mirror.request import VERIFY_FULL
from redirty.collector.mirror.running import RunningMirror
from redirty.collector.mirror.sources.source import Source
from redirty.collector.mirror.stop_time import urgent
from redirty.collector.mirror.switchover import MAX_ATTEMPTS, Switchover
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.verification import full_comparison_note
from redirty.collector.pageset import PAGE_SIZE, empty
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.tracking.rounds import Round
from redirty.collector.units import show_bits, show_bytes, show_pages, show_time

_FULL = 0.8  # of the bandwidth: less has another reason
# log2 of the regions of 2 MiB in one of the image's windows, of 1 GiB
_WINDOW_REGIONS = 9


class _DeadlineError(Exception):
    """The deadline passed in the middle of a pass."""


class Precopy:
    """Runs the passes of a mirror.

    Attributes:
        passes: all finished passes.
        decisions: made after each of them.
        left: bytes that were pending after each pass.
    """

    def __init__(self, mirror: RunningMirror, switchover: Switchover) -> None:
        self._mirror, self._switchover = mirror, switchover
        self.passes: list[PassReport] = []
        self.decisions: list[Decision] = []
        self.left: list[float] = []

    def run(self) -> dict[str, Any]:
        """Run passes until the mirror is committed, and return the contents of mirror.json.

        The target has to be armed.

        Raises:
            RedirtyError: the mirror will not converge, or cannot be made.
            TargetEndedError: the target ended.
        """
        mirror = self._mirror
        mirror.state.sync(mirror.living(), None)
        require_room(mirror.state.sources())
        if mirror.request.verify == VERIFY_FULL:
            size, goal_s = mirror.state.left_bytes(), mirror.request.goals.downtime_s
            mirror.observer.on_note(full_comparison_note(size, goal_s))
        while True:
            jobs, deferred = self._jobs()
            report = self._pass(jobs, deferred)
            result = self._end_round(report)
            self.passes.append(report)
            mirror.observer.on_pass(report, result)
            if len(self.passes) == 1 and not report.broken:
                self._note_limit(report)
            if report.broken:
                continue  # the pending pages show nothing about convergence
            self.left.append(float(mirror.state.left_bytes()))
            decision = self._decide()
            if decision.action == GIVE_UP:
                raise RedirtyError(self._explain(decision))
            if decision.action == QUIESCE:
                manifest = self._switchover.run(self.passes, self.decisions)
                if manifest is not None:
                    return manifest

    # ---- a pass ----

    def _jobs(self) -> tuple[list[Job], int]:
        """Return the pages to send, cold ones first, and the number of pages deferred to the last pass."""
        sources = self._mirror.state.sources()
        deferred = [empty()] * len(sources)
        goals, estimator = self._mirror.request.goals, self._mirror.estimator
        if self.passes and goals.downtime_s is not None and goals.passes is None:
            sending_s = max(goals.downtime_s - estimator.fixed_s, 0)
            limit = int(sending_s * estimator.stop_rate) // PAGE_SIZE
            deferred = defer([s.dirty for s in sources], [s.pending for s in sources], limit)
        cold_jobs, hot_jobs = [], []
        for source, kept in zip(sources, deferred, strict=True):
            cold, hot = cold_first(source.dirty, source.pending - kept)
            cold_jobs.append((source, cold))
            hot_jobs.append((source, hot))
        jobs = [job for job in (*cold_jobs, *hot_jobs) if len(job[1].keys)]
        return jobs, sum(len(kept) for kept in deferred)

    def _pass(self, jobs: Sequence[Job], deferred: int) -> PassReport:
        mirror, estimator, sink = self._mirror, self._mirror.estimator, self._mirror.sink
        number = len(self.passes) + 1
        started, sent_before = time.monotonic(), sink.sent_bytes
        estimator.start_pass(number, sum(len(p) for _, p in jobs), sent_before)
        try:
            counts = self._copy(number, jobs)
            sink.flush()
        except ConnectionLostError as e:
            mirror.reconnect(e)
            return PassReport(
                number=number,
                counts=mirror.pipeline.counts,
                bytes=sink.sent_bytes - sent_before,
                duration_s=time.monotonic() - started,
                deferred_pages=deferred,
                broken=True,
            )
        took_s, sent_bytes = time.monotonic() - started, sink.sent_bytes - sent_before
        estimator.end_pass(number, counts, sent_bytes, took_s)
        return PassReport(number, counts, sent_bytes, took_s, deferred)

    def _copy(self, number: int, jobs: Sequence[Job]) -> PassCounts:
        """Copy pages until all are copied, or the deadline has passed."""
        mirror, estimator = self._mirror, self._mirror.estimator

        def between_batches() -> None:
            mirror.check()
            if self._late():
                raise _DeadlineError
            progress = estimator.progress(mirror.pipeline.counts, mirror.sink.sent_bytes)
            if progress is not None:
                mirror.observer.on_progress(progress)

        size = batch_pages(estimator.link_rate, estimator.batch_overhead_s)
        try:
            return mirror.pipeline.copy(jobs, between_batches, size)
        except _DeadlineError:
            if number == 1:
                raise RedirtyError(self._too_late(jobs)) from None
            return mirror.pipeline.counts

    def _late(self) -> bool:
        deadline_s = self._mirror.request.goals.deadline_s
        return deadline_s is not None and self._mirror.estimator.elapsed_s > deadline_s

    def _too_late(self, jobs: Sequence[Job]) -> str:
        """Explain that not even the first pass was finished in time."""
        deadline_s = self._mirror.request.goals.deadline_s
        assert deadline_s is not None
        all_pages = sum(len(p) for _, p in jobs)
        left = all_pages - self._mirror.pipeline.counts.pages
        needed_s = self._mirror.estimator.elapsed_s * all_pages / max(all_pages - left, 1)
        return (
            f"cannot meet the deadline of {show_time(deadline_s)}: {show_pages(left)} of the first pass were "
            f"left; --deadline {needed_s * 1.5:.0f}s would suffice at this rate; the target was not stopped"
        )

    def _end_round(self, report: PassReport) -> Round:
        """Arm, update the pending pages, and add the round to the report and to the estimates."""
        mirror, recorder, state = self._mirror, self._mirror.recorder, self._mirror.state
        started = time.monotonic()
        with urgent():  # as when the target is stopped: this measures how long that will take
            result = recorder.end_round()
            state.sync(mirror.living(), result)
        state.untracked_spaces = {
            number for number, s in recorder.spaces.items() if _can_be_written_untracked(s)
        }
        report.dirty_pages = sum(len(s.dirty) for s in result.spaces)
        took_s = time.monotonic() - started + state.saved_s
        mirror.estimator.end_round(
            report, result, took_s, state.newly_dirty_pages(), state.reread_bytes()
        )
        report.new_pages = report.dirty_pages - sum(len(s.redirtied) for s in result.spaces)
        return result

    def _note_limit(self, first: PassReport) -> None:
        """Say when the first pass shows that it is not the bandwidth that limits the mirror."""
        bandwidth = self._mirror.request.bandwidth
        rate = first.bytes / first.duration_s
        mostly_sent = first.counts.sent_pages > first.counts.pages / 2
        if bandwidth is not None and mostly_sent and rate < _FULL * bandwidth:
            slow = "the destination" if first.counts.link_s > first.duration_s / 2 else "the copier"
            self._mirror.observer.on_note(
                f"limited by {slow}: {show_bytes(rate)}/s; --bandwidth allows {show_bits(bandwidth)}"
            )

    # ---- decisions ----

    def _decide(self) -> Decision:
        self._mirror.check()
        decision = decide(self._mirror.request.goals, self._situation())
        if decision.action == PASS and len(self._switchover.failed) >= MAX_ATTEMPTS:
            raise RedirtyError(
                "cannot stop the target in time; it keeps running, the mirror was discarded"
            )
        self.decisions.append(decision)
        self._mirror.observer.on_decision(decision)
        return decision

    def _situation(self) -> Situation:
        estimator = self._mirror.estimator
        return Situation(
            number=len(self.passes),
            left=self.left,
            rate=estimator.stop_rate,
            fixed_s=estimator.fixed_s,
            elapsed_s=estimator.elapsed_s,
            stops=len(self._switchover.failed),
        )

    def _explain(self, decision: Decision) -> str:
        """Measure what is written within the downtime goal, and explain what would make the mirror converge."""
        goals, recorder = self._mirror.request.goals, self._mirror.recorder
        goal_s = goals.downtime_s
        assert goal_s is not None
        recorder.end_round()
        if not recorder.wait(time.monotonic() + goal_s, lambda: None, goal_s):
            raise TargetEndedError(f"{self._mirror.request.target.description} ended")
        written_bytes = sum(len(s.dirty) for s in recorder.end_round().spaces) * PAGE_SIZE
        advice = advise(goals, written_bytes, self._situation())
        stopped = "the target runs on" if self._switchover.failed else "the target was not stopped"
        return f"the mirror will not converge: {decision.reason}; {advice}; {stopped}"


def require_room(sources: Sequence[Source]) -> None:
    """Check, before anything is copied, that an image has room for all pages.

    Raises:
        RedirtyError: they lie in too many places.
    """
    windows = sum(len(np.unique(s.pending.keys >> np.uint64(_WINDOW_REGIONS))) for s in sources)
    if windows > MAX_WINDOWS:
        raise RedirtyError(
            f"cannot mirror the target: its pages are spread over {windows} GiB of addresses, and a mirror has room "
            f"for {MAX_WINDOWS}; the target was not stopped"
        )


def _can_be_written_untracked(space: AddressSpace) -> bool:
    """Return whether neither faults nor page tables show every write to a space."""
    return space.armed is None or space.unarmed > 0 or space.pinned_kib > 0
