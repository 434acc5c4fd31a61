"""A mirror from start to end: load, arm, pass after pass, quiesce, commit."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

from redirty.collector.arm.choose import choose
from redirty.collector.arm.holding import Holding
from redirty.collector.arm.injection import Injector
from redirty.collector.arm.pagemap import scan_supported
from redirty.collector.attach.loading import Options
from redirty.collector.attach.tracer import Tracer
from redirty.collector.copier import core
from redirty.collector.copier.decide import (
    GIVE_UP,
    PASS,
    QUIESCE,
    Decision,
    Standing,
    decide,
    would_do,
)
from redirty.collector.copier.engine import Counts, Engine, Job, batch_pages
from redirty.collector.copier.held_back import cold_first, hold_back
from redirty.collector.copier.outside import mapped_outside
from redirty.collector.copier.quiesce import Quiesce, QuiesceError, Stopped
from redirty.collector.copier.reading import PAGE
from redirty.collector.copier.sink import BrokenError, Sink
from redirty.collector.copier.state import State
from redirty.collector.copier.summary import information_of
from redirty.collector.copier.wish import Listener, PassDone, Wish
from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.collector.host.command import Command
from redirty.collector.host.mappings import Mappings
from redirty.collector.host.process import regions_for
from redirty.collector.memory import (
    give_back_freed_memory,
    keep_freed_memory,
    open_as_many_files_as_may_be,
)
from redirty.collector.rounds import Recorder
from redirty.collector.session import start_command
from redirty.collector.space import Space

log = logging.getLogger(__name__)

_TRIES = 4  # of a quiesce
_ENOUGH_TO_MEASURE = 4 << 20  # bytes
_MOSTLY = 0.8
_SLOTS_OF_MANY, _SLOTS_OF_FEW = 1024, 64
_READ_AGAIN_RATE = 4e9  # bytes a second, of memory that is only compared


class Mirroring:
    """One mirror. stop() may be called from a signal handler."""

    def __init__(self, wish: Wish, open_sink: Callable[[], Sink], listener: Listener) -> None:
        self.wish = wish
        self._open_sink = open_sink
        self.listener = listener
        self.interrupted = False
        self.passes: list[PassDone] = []
        self.decisions: list[Decision] = []
        self.left: list[float] = []
        self.rate = 1e9
        self._fixed_s = 0.0
        self._boundaries: list[float] = []
        self._failed = 0
        self.information: dict[str, Any] = {}
        self._engine: Engine | None = None

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Ends it at the next occasion; there will be no mirror."""
        self.interrupted = True

    @property
    def counts(self) -> Counts | None:
        """Of the pass that goes on, or of the last one; another object with each. From any thread."""
        return None if self._engine is None else self._engine.counts

    # ---- start and end ----

    def run(self) -> dict[str, Any]:
        """Mirrors; what mirror.json says.

        Errors: RedirtyError; TargetEndedError. There is no mirror then, and the target runs on.
        """
        keep_freed_memory()
        open_as_many_files_as_may_be()
        old = {
            n: signal.signal(n, self.stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        injector = Injector()
        target = self.wish.target
        tracer = recorder = holding = sink = state = None
        try:
            way = choose(self.wish.arm, injector)
            holding = Holding()
            sink = self._open_sink()
            tracer = Tracer(self._options())
            give_back_freed_memory()
            recorder = Recorder(tracer, target, way, injector)
            state = State(sink, scan=scan_supported(), part_of=partial(_part_of, recorder))
            self._begun = time.monotonic()
            if isinstance(target, Command):
                start_command(recorder, target)
            else:
                recorder.begin()
            self._passes(recorder, state, sink, holding)
            return self.information
        finally:
            if holding is not None:
                holding.close()  # before all else: whatever stands still runs
            if recorder is not None:
                recorder.close()
            if self._engine is not None:
                self._engine.close()
            if state is not None:
                state.close()
            if sink is not None:
                sink.close()
            if tracer is not None:
                tracer.close()
            injector.close()
            if isinstance(target, Command):
                target.abandon()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _options(self) -> Options:
        target = self.wish.target
        many = target.follow_fork
        return Options(
            probe=self.wish.probe,
            regions=regions_for(target.members()),
            slots=_SLOTS_OF_MANY if many else max(_SLOTS_OF_FEW, 2 * len(target.members())),
            follow_fork=many,
        )

    # ---- passes ----

    def _passes(self, recorder: Recorder, state: State, sink: Sink, holding: Holding) -> None:
        engine = self._engine = Engine(sink, self.wish.compress, keep_lists=self.wish.keep_lists)
        state.follow(_living(recorder), None)
        held = 0
        while True:
            jobs, held = self._jobs(state, held_back=bool(self.passes))
            done = self._pass(engine, state, sink, jobs, held)
            begun = time.monotonic()
            result = recorder.end_round()
            state.follow(_living(recorder), result)
            state.unseen = {n for n, s in recorder.spaces.items() if _can_be_written_unseen(s)}
            again_s = state.unsettled_bytes() / _READ_AGAIN_RATE
            # A boundary that the machine delayed once says little of the next one.
            self._boundaries = [*self._boundaries[-2:], time.monotonic() - begun + state.saved_s]
            self._fixed_s = min(self._boundaries) + again_s
            done.dirty_pages = sum(len(s.dirty) for s in result.spaces)
            done.new_pages = done.dirty_pages - sum(len(s.redirtied) for s in result.spaces)
            self.passes.append(done)
            self.listener.passed(done, state, result)
            if done.broken:
                continue  # what is left says nothing of whether it converges
            self.left.append(float(state.left_bytes()))
            decision = self._decide()
            if decision.action == GIVE_UP:
                raise RedirtyError(self._why_not(recorder, decision))
            if decision.action == QUIESCE and self._quiesce(recorder, state, engine, sink, holding):
                return

    def _pass(
        self, engine: Engine, state: State, sink: Sink, jobs: Sequence[Job], held: int
    ) -> PassDone:
        number = len(self.passes) + 1
        self.listener.going(number, sum(len(p) for _, p in jobs) * PAGE, self.rate)
        begun, before = time.monotonic(), sink.sent_bytes
        try:
            known = self.rate if self.passes else self.wish.bandwidth or self.rate
            counts = engine.copy(jobs, self._check, batch_pages(known))
            sink.flush()
        except BrokenError as e:
            self._reconnect(state, sink, e)
            return PassDone(
                *(number, engine.counts, sink.sent_bytes - before),
                *(time.monotonic() - begun, held),
                broken=True,
            )
        took, sent = time.monotonic() - begun, sink.sent_bytes - before
        if number == 1 and sent:
            self.rate = sent / took
        elif sent >= _ENOUGH_TO_MEASURE:
            # When much was found unchanged the time went into reading, not into sending.
            mostly_sent = counts.sent_pages > _MOSTLY * counts.pages
            self.rate = sent / took if mostly_sent else max(self.rate, sent / took)
        if self.wish.bandwidth is not None:
            self.rate = min(self.rate, self.wish.bandwidth)
        return PassDone(number, counts, sent, took, held)

    def _reconnect(self, state: State, sink: Sink, error: BrokenError) -> None:
        """What was not acknowledged is dirty again. Errors: RedirtyError when nobody comes back."""
        self.listener.said(f"the connection broke ({error}): trying again")
        state.lost(sink.reconnect())
        self.listener.said("connected again, going on")

    def _check(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def _jobs(self, state: State, *, held_back: bool) -> tuple[list[Job], int]:
        """What is to be sent, cold pages first, and how many pages are kept for the end."""
        sources = state.sources()
        rounds = [s.dirty for s in sources]
        goal = self.wish.goals.downtime_s
        keep = [s.pending - s.pending for s in sources]
        if held_back and goal is not None and self.wish.goals.passes is None:
            most = int(max(goal - self._fixed_s, 0) * self.rate) // PAGE
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
        decision = decide(self.wish.goals, now)
        if decision.action == PASS and self._failed >= _TRIES:
            raise RedirtyError("the target could not be stopped in time; it runs on")
        self.decisions.append(decision)
        self.listener.decided(decision)
        return decision

    def _standing(self) -> Standing:
        elapsed = time.monotonic() - self._begun
        number = len(self.passes)
        return Standing(number, self.left, self.rate, self._fixed_s, elapsed, self._failed)

    def _why_not(self, recorder: Recorder, decision: Decision) -> str:
        """Measures what is written within the downtime asked for, and says what would do."""
        goal = self.wish.goals.downtime_s
        assert goal is not None
        recorder.end_round()
        if not recorder.wait(time.monotonic() + goal, lambda: None, goal):
            raise TargetEndedError(f"{self.wish.target.description} ended")
        written = sum(len(s.dirty) for s in recorder.end_round().spaces) * PAGE
        advice = would_do(self.wish.goals, written, self._standing())
        return f"it will not converge: {decision.reason}; {advice}; the target was left alone"

    # ---- the end ----

    def _quiesce(
        self, recorder: Recorder, state: State, engine: Engine, sink: Sink, holding: Holding
    ) -> bool:
        """Whether it went well. Errors: RedirtyError when it went wrong too often."""
        goal = self.wish.goals.downtime_s
        limit = None if goal is None else 2 * goal
        state.doubtful = mapped_outside(
            {s.pid for s in state.spaces.values()}, state.files.by_key.values()
        )
        quiesce = Quiesce(recorder, state, engine, sink, holding, limit, self.wish.qmp)
        before = sink.sent_bytes
        try:
            stopped = quiesce.run(
                lambda: _living(recorder),
                verify=self.wish.verify,
                leave_stopped=self.wish.leave_stopped,
            )
        except QuiesceError as e:
            self._failed += 1
            self.listener.said(f"{e}; it runs on (try {self._failed} of {_TRIES})")
            if self._failed >= _TRIES:
                raise RedirtyError(
                    f"{e}, {_TRIES} times; the target runs on, there is no mirror"
                ) from None
            return False
        except BrokenError as e:
            self._failed += 1
            sink.deadline = None
            self._reconnect(state, sink, e)
            if self._failed >= _TRIES:
                raise RedirtyError(
                    f"{e}, {_TRIES} times; the target runs on, there is no mirror"
                ) from None
            return False
        finally:
            sink.deadline = None
        self._finish(stopped, state, sink, sink.sent_bytes - before)
        return True

    def _finish(self, stopped: Stopped, state: State, sink: Sink, last_bytes: int) -> None:
        digests = stopped.digests
        if digests is not None and digests[0] != digests[1]:
            raise RedirtyError(
                "the mirror is not what the target's memory is: something wrote to it unseen while it "
                "stood still (a device, or a process outside the target); there is no mirror"
            )
        last = PassDone(len(self.passes) + 1, stopped.counts, last_bytes, stopped.copy_s)
        self.information = information_of(
            self.wish,
            [*self.passes, last],
            self.decisions,
            stopped,
            sent_bytes=sink.sent_bytes,
            total_s=time.monotonic() - self._begun,
            unmirrored=state.unmirrored(),
        )
        try:
            sink.commit(stopped.processes, core.machine(), self.information)
        except BrokenError as e:
            if self.wish.leave_stopped:
                _continue([p.pid for p in stopped.processes])
            raise RedirtyError(
                f"the connection broke at the commit ({e}): there is a mirror if mirror.json is there, "
                "else there is none; the target runs on"
            ) from None
        except BaseException:
            if self.wish.leave_stopped:
                _continue([p.pid for p in stopped.processes])
            raise


def _continue(pids: Sequence[int]) -> None:
    """There is no mirror: what was left stopped for it runs."""
    import contextlib
    import os

    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def _can_be_written_unseen(space: Space) -> bool:
    """Neither its faults nor its page tables would tell of every write."""
    return space.armed is None or space.unarmed > 0 or space.pinned_kib > 0


def _part_of(recorder: Recorder, number: int) -> Mappings | None:
    """What was armed of a space, where the rest of it does not belong to the target."""
    return recorder.spaces[number].mappings if recorder.targets.partial else None


def _living(recorder: Recorder) -> dict[int, int]:
    """Process by number of its address space."""
    return {number: s.pid for number, s in recorder.spaces.items() if not s.gone}
