"""A recording session: load the probes, arm the target, and record round after round on schedule."""

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
from redirty.collector.linux.malloc import raise_fd_limit, retain_freed_memory, trim_heap
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
from redirty.collector.tracking.slots import slot_count
from redirty.collector.tracking.start import start_command
from redirty.collector.units import plural

log = logging.getLogger(__name__)

_TICK_S = 0.25
_EVENT_TICK_S = 0.02  # short enough that the ring does not fill up


class Session:
    """A recording from start to end. stop() may be called from a signal handler.

    Attributes:
        options: what to record.
        on_round: called after each round.
        on_armed: called once the target is armed.
        on_counted: called with the share of the memory that has been searched for zero pages.
        on_planned: called when all planned rounds are done, while the target is still armed.
        interrupted: whether stop() was called.
        rounds, lost_events: number of rounds, and of events that the kernel side lost.
        by_log_only, pinned_kib, moved_pages: see tracking.members.Members.
        names: names of the target's processes.
        begin_s: how long it took to arm the target for the first time; of a command 0.
    """

    def __init__(
        self,
        options: RecordingOptions,
        on_round: Callable[[Round], None] = lambda r: None,
        on_armed: Callable[[], None] = lambda: None,
        make_sink: Callable[[RecordingOptions, Recorder, ProcessNames], RoundSink] = Outputs,
        on_counted: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.options = options
        self._make_sink = make_sink
        self._schedule: Schedule | None = None
        self._interval_s = options.interval_s
        self.on_round = on_round
        self.on_armed = on_armed
        self.on_counted = on_counted
        self.on_planned: Callable[[Recorder], None] = lambda recorder: None
        self.interrupted = self._stopped = False
        self._finished = False
        self.rounds = 0
        self.begin_s = 0.0
        self.lost_events = 0
        self.by_log_only = 0
        self.pinned_kib = 0
        self.moved_pages = 0
        self.method = ""
        self.names = ProcessNames()
        self._sink: RoundSink | None = None

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """End the session as soon as possible; what has been recorded is kept."""
        self.interrupted = self._stopped = True
        if self._sink is not None:
            self._sink.hurry()

    def finish(self) -> None:
        """End the session as planned, with a last round that has everything written before this call.

        May be called from another thread.
        """
        self._finished = True

    @property
    def interval_s(self) -> float:
        """Length of a round; may be set from another thread, also for the current round."""
        return self._interval_s

    @interval_s.setter
    def interval_s(self, seconds: float) -> None:
        self._interval_s = seconds
        if self._schedule is not None:
            self._schedule.interval_s = seconds

    # ---- start ----

    def run(self) -> None:
        """Record until all planned rounds are done, the target ends, or stop() is called.

        Raises: RedirtyError; TargetEndedError when the target ended early. What was recorded until then is
            valid in every case.
        """
        if self.options.directory is not None:
            require_new(self.options.directory)
        retain_freed_memory()
        raise_fd_limit()
        # If this is another thread, the caller handles the signals, and calls stop().
        main_thread = threading.current_thread() is threading.main_thread()
        old = {
            n: signal.signal(n, self.stop) for n in (termination_signals() if main_thread else ())
        }
        injector = Injector()
        tracer = None
        recorder = None
        try:
            self.method = method = choose(self.options.arm, injector)
            if self.options.target.follow_fork:
                self.names.listen()  # imports pyroute2, which is slow: before anything is armed
            tracer = Tracer(self._tracer_options())
            trim_heap()
            recorder = Recorder(tracer, self.options.target, method, injector)
            if isinstance(self.options.target, Command):
                start_command(recorder, self.options.target)
            else:
                started = time.monotonic()
                recorder.begin()
                self.begin_s = time.monotonic() - started
            self._sink = self._make_sink(self.options, recorder, self.names)
            if self.interrupted:  # meanwhile
                self._sink.hurry()
            self.on_armed()
            self._loop(recorder)
        finally:
            if recorder is not None:
                recorder.close()  # the target's memory first, then everything else
            if tracer is not None:
                tracer.close()
            injector.close()
            if self._sink is not None:
                self._sink.done()
            self.names.close()
            if isinstance(self.options.target, Command):
                self.options.target.abandon()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _tracer_options(self) -> Options:
        target = self.options.target
        return Options(
            probe=self.options.probe,
            regions=regions_for(target.members()),
            events=self.options.events,
            stacks=self.options.stacks,
            slots=slot_count(target),
            follow_fork=target.follow_fork,
            part=target.partial,
        )

    # ---- rounds ----

    def _loop(self, recorder: Recorder) -> None:
        options = self.options
        try:
            outcome = self._rounds(recorder)
            # A command that is recorded until it ends is complete when it does.
            to_its_end = (
                outcome == "ended" and isinstance(options.target, Command) and not options.bounded
            )
            if to_its_end:
                self._add(recorder.last_round())
            if outcome == "planned":
                self.on_planned(recorder)
        except BaseException:
            recorder.close()
            with contextlib.suppress(RedirtyError):  # the first error is the one to report
                self._finish(recorder, complete=False)
            raise
        zeros = None
        if options.zeros and isinstance(self._sink, Outputs):
            zeros = ZeroPages(recorder.spaces.values(), self._sink.once.shown)
        recorder.close()
        stopped_by_hand = outcome == "interrupted" and not options.bounded
        self._finish(recorder, complete=outcome == "planned" or to_its_end or stopped_by_hand)
        if zeros is not None:
            self._count_zeros(zeros)
        if outcome == "ended" and not to_its_end:
            rounds = plural(self.rounds, "complete round is", "complete rounds are")
            kept = "" if options.directory is None else f"; {rounds} kept in {options.directory}"
            raise TargetEndedError(
                f"{options.target.description} ended before the recording was complete{kept}"
            )

    def _rounds(self, recorder: Recorder) -> str:
        """Run the rounds; return why they ended: planned (all done), ended (the target), interrupted."""
        options = self.options
        start = recorder.started_ns / 1e9
        schedule = self._schedule = Schedule(start, self._interval_s)
        while True:
            alive = self._wait(recorder, schedule, start)
            last = (
                self._finished
            )  # read before the round ends: the round must have all writes until finish()
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
            if last or (options.count and self.rounds >= options.count):
                return "planned"
            if options.duration_s and elapsed >= options.duration_s:
                return "planned"
            if self.interrupted:
                return "interrupted"

    def _wait(self, recorder: Recorder, schedule: Schedule, start: float) -> bool:
        """Sleep until a boundary or an interruption. Return False when the target has ended."""
        assert self._sink is not None
        end = start + self.options.duration_s if self.options.duration_s else math.inf
        tick_s = _EVENT_TICK_S if self.options.events else _TICK_S
        while not (self.interrupted or self._finished):
            due = min(schedule.due(), end)
            step = min(due, time.monotonic() + _TICK_S)
            if not recorder.wait(step, self._sink.tick, tick_s):
                return False
            if step >= due:
                break
        return True

    def _add(self, result: Round) -> None:
        assert self._sink is not None
        self._sink.tick()
        self._sink.add(result)
        self.rounds += 1
        self.lost_events += int(result.stats["lost"].sum() + result.stats["lost_events"].sum())
        self.on_round(result)

    def _count_zeros(self, zeros: ZeroPages) -> None:
        """Count zero pages, once nothing is armed any more. stop() abandons the count."""
        self._stopped = False
        done, total = 0, max(zeros.pages, 1)

        def searched(pages: int) -> None:
            nonlocal done
            done += pages
            self.on_counted(done / total)

        try:
            found = list(zeros.count(lambda: self._stopped, searched))
        finally:
            zeros.close()
        if found and not self._stopped and isinstance(self._sink, Outputs):
            write_zeros(self._sink.folder, found)

    def _finish(self, recorder: Recorder, *, complete: bool) -> None:
        assert self._sink is not None
        self.by_log_only = recorder.members.by_log_only
        self.pinned_kib = recorder.members.pinned_kib()
        self.moved_pages = recorder.members.moved_pages()
        target = self.options.target
        exit_status = {"exit_status": target.reap()} if isinstance(target, Command) else {}
        self._sink.close(complete=complete, lost_events=self.lost_events, extra=exit_status)
