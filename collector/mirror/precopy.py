"""Pass after pass, until the target can be stopped or it is clear that it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.decision import (
    GIVE_UP,
    PASS,
    QUIESCE,
    Decision,
    Situation,
    decide,
    would_do,
)
from redirty.collector.mirror.deferral import cold_first, hold_back
from redirty.collector.mirror.observer import PassReport
from redirty.collector.mirror.pipeline import Job, batch_pages
from redirty.collector.mirror.switchover import TRIES, Means, Switchover, living, reconnect
from redirty.collector.mirror.transport.sink import BrokenError
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.units import show_pages, show_time


class _DeadlineError(Exception):
    """The deadline came in the middle of a pass."""


class Precopy:
    """check() is called now and then, and ends it by an exception."""

    def __init__(self, means: Means, ending: Switchover, check: Callable[[], None]) -> None:
        self._wish, self._listener, self._outlook = means.wish, means.listener, means.outlook
        self._recorder, self._state, self._engine = means.recorder, means.state, means.engine
        self._sink, self._ending, self._check = means.sink, ending, check
        self.passes: list[PassReport] = []
        self.decisions: list[Decision] = []
        self.left: list[float] = []

    def run(self) -> dict[str, Any]:
        """Until the mirror is committed: what mirror.json says. The target is armed.

        Errors: RedirtyError; TargetEndedError.
        """
        recorder, state = self._recorder, self._state
        state.follow(living(recorder), None)
        held = 0
        while True:
            jobs, held = self._jobs(held_back=bool(self.passes))
            done = self._pass(jobs, held)
            begun = time.monotonic()
            result = recorder.end_round()
            state.follow(living(recorder), result)
            state.unseen = {n for n, s in recorder.spaces.items() if _can_be_written_unseen(s)}
            done.dirty_pages = sum(len(s.dirty) for s in result.spaces)
            took_s = time.monotonic() - begun + state.saved_s
            self._outlook.bounded(
                done, result, took_s, state.fresh_pages(), state.unsettled_bytes()
            )
            done.new_pages = done.dirty_pages - sum(len(s.redirtied) for s in result.spaces)
            self.passes.append(done)
            self._listener.passed(done, state, result)
            if done.broken:
                continue  # what is left says nothing of whether it converges
            self.left.append(float(state.left_bytes()))
            decision = self._decide()
            if decision.action == GIVE_UP:
                raise RedirtyError(self._why_not(decision))
            if decision.action == QUIESCE:
                information = self._ending.run(self.passes, self.decisions)
                if information is not None:
                    return information

    def _pass(self, jobs: Sequence[Job], held: int) -> PassReport:
        engine, sink = self._engine, self._sink
        number = len(self.passes) + 1
        begun, before = time.monotonic(), sink.sent_bytes
        self._outlook.passing(number, sum(len(p) for _, p in jobs), before)

        def between() -> None:
            self._check()
            if self._late():
                raise _DeadlineError
            going = self._outlook.going(engine.counts, sink.sent_bytes)
            if going is not None:
                self._listener.going(going)

        try:
            size = batch_pages(self._outlook.link_rate, self._outlook.own_s)
            try:
                counts = engine.copy(jobs, between, size)
            except _DeadlineError:
                if number == 1:
                    raise RedirtyError(self._too_late(jobs)) from None
                counts = engine.counts
            sink.flush()
        except BrokenError as e:
            reconnect(self._listener, self._state, sink, e)
            return PassReport(
                *(number, engine.counts, sink.sent_bytes - before),
                *(time.monotonic() - begun, held),
                broken=True,
            )
        took, sent = time.monotonic() - begun, sink.sent_bytes - before
        self._outlook.sent(number, counts, sent, took)
        return PassReport(number, counts, sent, took, held)

    def _late(self) -> bool:
        deadline_s = self._wish.goals.deadline_s
        return deadline_s is not None and self._outlook.elapsed_s > deadline_s

    def _too_late(self, jobs: Sequence[Job]) -> str:
        """Not even the first pass was made in time."""
        deadline_s = self._wish.goals.deadline_s
        assert deadline_s is not None
        all_pages = sum(len(p) for _, p in jobs)
        left = all_pages - self._engine.counts.pages
        would_take_s = self._outlook.elapsed_s * all_pages / max(all_pages - left, 1)
        return (
            f"it cannot be done in {show_time(deadline_s)}: {show_pages(left)} of the first pass were left; "
            f"--deadline {would_take_s * 1.5:.0f}s would do at this rate; the target was left alone"
        )

    def _jobs(self, *, held_back: bool) -> tuple[list[Job], int]:
        """What is to be sent, cold pages first, and how many pages are kept for the end."""
        sources = self._state.sources()
        rounds = [s.dirty for s in sources]
        goal = self._wish.goals.downtime_s
        keep = [s.pending - s.pending for s in sources]
        if held_back and goal is not None and self._wish.goals.passes is None:
            most = int(max(goal - self._outlook.fixed_s, 0) * self._outlook.rate) // PAGE
            keep = hold_back(rounds, [s.pending for s in sources], most)
        cold, hot = [], []
        for source, kept in zip(sources, keep, strict=True):
            one, two = cold_first(source.dirty, source.pending - kept)
            cold.append((source, one))
            hot.append((source, two))
        return [job for job in (*cold, *hot) if len(job[1].keys)], sum(len(k) for k in keep)

    def _decide(self) -> Decision:
        self._check()
        now = self._standing()
        decision = decide(self._wish.goals, now)
        if decision.action == PASS and self._ending.failed >= TRIES:
            raise RedirtyError("the target could not be stopped in time; it runs on")
        self.decisions.append(decision)
        self._listener.decided(decision)
        return decision

    def _standing(self) -> Situation:
        now = self._outlook
        number = len(self.passes)
        return Situation(
            number, self.left, now.rate, now.fixed_s, now.elapsed_s, self._ending.failed
        )

    def _why_not(self, decision: Decision) -> str:
        """Measures what is written within the downtime asked for, and says what would do."""
        goal = self._wish.goals.downtime_s
        assert goal is not None
        recorder = self._recorder
        recorder.end_round()
        if not recorder.wait(time.monotonic() + goal, lambda: None, goal):
            raise TargetEndedError(f"{self._wish.target.description} ended")
        written = sum(len(s.dirty) for s in recorder.end_round().spaces) * PAGE
        advice = would_do(self._wish.goals, written, self._standing())
        return f"it will not converge: {decision.reason}; {advice}; the target was left alone"


def _can_be_written_unseen(space: AddressSpace) -> bool:
    """Neither its faults nor its page tables would tell of every write."""
    return space.armed is None or space.unarmed > 0 or space.pinned_kib > 0
