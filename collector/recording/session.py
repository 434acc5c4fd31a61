"""A recording session: load, arm, round after round on schedule, into a recording."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from redirty.collector.arming.methods import choose
from redirty.collector.bpf.loader import Options, regions_for
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import GoneError, RedirtyError, TargetEndedError
from redirty.collector.files import require_new
from redirty.collector.linux.malloc import retain_freed_memory, trim_heap
from redirty.collector.linux.signals import termination_signals
from redirty.collector.metrics.zero_pages import ZeroPages
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.recording.options import RecordingOptions
from redirty.collector.recording.outputs import Outputs
from redirty.collector.recording.process_names import ProcessNames
from redirty.collector.recording.sink import RoundSink
from redirty.collector.recording.zeros import write_zeros
from redirty.collector.target.command import Command
from redirty.collector.tracking.rounds import Recorder, Round
from redirty.collector.tracking.schedule import Schedule
from redirty.collector.tracking.start import start_command

log = logging.getLogger(__name__)

_TICK_S = 0.25
_EVENT_TICK_S = 0.02  # the ring must not fill up in between
_SLOTS_OF_MANY, _SLOTS_OF_FEW = 1024, 64


class Session:
    """One recording from start to end. stop() may be called from a signal handler.

    outputs: what becomes of the rounds, made when the target is armed; files, unless told otherwise.
    """

    def __init__(
        self,
        plan: RecordingOptions,
        on_round: Callable[[Round], None] = lambda r: None,
        on_armed: Callable[[], None] = lambda: None,
        outputs: Callable[[RecordingOptions, Recorder, ProcessNames], RoundSink] = Outputs,
        on_counted: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.plan = plan
        self._make_outputs = outputs
        self._schedule: Schedule | None = None
        self._interval_s = plan.interval_s
        self.on_round = on_round
        self.on_armed = on_armed
        self.on_counted = on_counted
        self.interrupted = self._stopped = False
        self._finished = False
        self.rounds = 0
        self.lost_events = 0
        self.by_log_only = 0
        self.pinned_kib = 0
        self.moved_pages = 0
        self.family = ProcessNames()
        self._outputs: RoundSink | None = None

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Ends it at the next occasion; what is done is kept."""
        self.interrupted = self._stopped = True

    def finish(self) -> None:
        """Ends it as planned, with a round that has all that was written before this call; may be
        called from another thread."""
        self._finished = True

    @property
    def interval_s(self) -> float:
        """Length of a round; may be set from another thread, for the round that runs, too."""
        return self._interval_s

    @interval_s.setter
    def interval_s(self, seconds: float) -> None:
        self._interval_s = seconds
        if self._schedule is not None:
            self._schedule.interval_s = seconds

    # ---- start ----

    def run(self) -> None:
        """Records until the plan is done, the target ended, or stop().

        Errors: RedirtyError; TargetEndedError when the target ended early. The recording made so
        far is valid in every case.
        """
        if self.plan.directory is not None:
            require_new(self.plan.directory)
        retain_freed_memory()
        # In another thread somebody else takes the signals, and calls stop().
        alone = threading.current_thread() is threading.main_thread()
        old = {n: signal.signal(n, self.stop) for n in (termination_signals() if alone else ())}
        injector = Injector()
        tracer = None
        recorder = None
        try:
            way = choose(self.plan.arm, injector)
            if self.plan.target.follow_fork:
                self.family.listen()  # pyroute2 takes a while to import: before anything is armed
            tracer = Tracer(self._options())
            trim_heap()
            recorder = Recorder(tracer, self.plan.target, way, injector)
            if isinstance(self.plan.target, Command):
                start_command(recorder, self.plan.target)
            else:
                recorder.begin()
            self._outputs = self._make_outputs(self.plan, recorder, self.family)
            self.on_armed()
            self._loop(recorder)
        finally:
            if recorder is not None:
                recorder.close()  # first of all the target's memory, then everything else
            if tracer is not None:
                tracer.close()
            injector.close()
            self.family.close()
            if isinstance(self.plan.target, Command):
                self.plan.target.abandon()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _options(self) -> Options:
        many = self.plan.target.follow_fork
        return Options(
            probe=self.plan.probe,
            regions=regions_for(self.plan.target.members()),
            events=self.plan.events,
            stacks=self.plan.stacks,
            slots=_SLOTS_OF_MANY
            if many
            else max(_SLOTS_OF_FEW, 2 * len(self.plan.target.members())),
            follow_fork=many,
            part=self.plan.target.partial,
        )

    # ---- rounds ----

    def _loop(self, recorder: Recorder) -> None:
        plan = self.plan
        try:
            outcome = self._rounds(recorder)
            # A command that was to be recorded to its end is complete with it.
            to_its_end = (
                outcome == "ended" and isinstance(plan.target, Command) and not plan.bounded
            )
            if to_its_end:
                self._add(recorder.last_round())
        except BaseException:
            recorder.close()
            with contextlib.suppress(RedirtyError):  # the first error is the one to tell
                self._finish(recorder, complete=False)
            raise
        counted = plan.zeros and plan.directory is not None
        zeros = ZeroPages(recorder.spaces.values()) if counted else None
        recorder.close()
        stopped_by_hand = outcome == "interrupted" and not plan.bounded
        self._finish(recorder, complete=outcome == "planned" or to_its_end or stopped_by_hand)
        if zeros is not None:
            self._count(zeros)
        if outcome == "ended" and not to_its_end:
            n = self.rounds
            rounds = "1 complete round is" if n == 1 else f"{n} complete rounds are"
            kept = "" if plan.directory is None else f"; {rounds} kept in {plan.directory}"
            raise TargetEndedError(
                f"{plan.target.description} ended before the recording was to end{kept}"
            )

    def _rounds(self, recorder: Recorder) -> str:
        """Round after round: planned (all done), ended (the target did), or interrupted."""
        plan = self.plan
        start = recorder.started_ns / 1e9
        schedule = self._schedule = Schedule(start, self._interval_s)
        while True:
            alive = self._wait(recorder, schedule, start)
            last = self._finished  # before the round ends: it must have all that was until then
            if not alive and not self.interrupted:
                return "ended"
            try:
                result = recorder.end_round()
            except (TargetEndedError, GoneError):
                return "ended"
            self._add(result)
            now = time.monotonic()
            elapsed = now - start
            schedule.ended(now)
            if last or (plan.count and self.rounds >= plan.count):
                return "planned"
            if plan.duration_s and elapsed >= plan.duration_s:
                return "planned"
            if self.interrupted:
                return "interrupted"

    def _wait(self, recorder: Recorder, schedule: Schedule, start: float) -> bool:
        """Sleeps until a boundary, or an interruption. False: the target ended."""
        assert self._outputs is not None
        end = start + self.plan.duration_s if self.plan.duration_s else math.inf
        tick_s = _EVENT_TICK_S if self.plan.events else _TICK_S
        while not (self.interrupted or self._finished):
            due = min(schedule.due(), end)
            step = min(due, time.monotonic() + _TICK_S)
            if not recorder.wait(step, self._outputs.tick, tick_s):
                return False
            if step >= due:
                break
        return True

    def _add(self, result: Round) -> None:
        assert self._outputs is not None
        self._outputs.tick()
        self._outputs.add(result)
        self.rounds += 1
        self.lost_events += int(result.stats["lost"].sum() + result.stats["lost_events"].sum())
        self.on_round(result)

    def _count(self, zeros: ZeroPages) -> None:
        """When nothing is armed any more. Asked to stop meanwhile, it leaves them uncounted."""
        self._stopped = False
        done, total = 0, max(zeros.pages, 1)

        def looked(pages: int) -> None:
            nonlocal done
            done += pages
            self.on_counted(done / total)

        try:
            found = list(zeros.count(lambda: self._stopped, looked))
        finally:
            zeros.close()
        if found and not self._stopped and self.plan.directory is not None:
            write_zeros(self.plan.directory, found)

    def _finish(self, recorder: Recorder, *, complete: bool) -> None:
        assert self._outputs is not None
        self.by_log_only = recorder.members.by_log_only
        self.pinned_kib = recorder.members.pinned_kib()
        self.moved_pages = recorder.members.moved_pages()
        target = self.plan.target
        exit_status = {"exit_status": target.reap()} if isinstance(target, Command) else {}
        self._outputs.close(complete=complete, lost_events=self.lost_events, extra=exit_status)
