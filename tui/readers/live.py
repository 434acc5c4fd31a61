"""Traces a running target: records rounds in a separate thread, publishes a snapshot after each of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redirty.collector.arming.fault_cost import fault_s
from redirty.collector.errors import TargetEndedError, one_line
from redirty.collector.linux.cpu_time import CpuTimeSampler
from redirty.collector.metrics.counted_once import OnceCounter
from redirty.collector.metrics.observed_rounds import points_of
from redirty.collector.metrics.within import WrittenWithin
from redirty.collector.metrics.write_curves import WindowCurves, inside
from redirty.collector.recording.options import RecordingOptions
from redirty.collector.recording.outputs import Outputs
from redirty.collector.recording.process_names import ProcessNames
from redirty.collector.recording.session import Session
from redirty.collector.target.command import Command
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.rounds import Recorder, Round
from redirty.tui.readers.page_table_watch import PageTableWatch
from redirty.tui.readers.target import TargetReader
from redirty.tui.readers.writers import WriterCounts
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.cost import DEFAULT_MAX, Cost, cost_of, longer_interval
from redirty.tui.snapshots.history import KEPT, MEAN, History
from redirty.tui.snapshots.round_summary import RoundSummary, of_round
from redirty.tui.snapshots.snapshot import ReaderState, TargetInfo

log = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.01
_SETTLE_ROUNDS = 3  # after a change of the interval, before the overhead guard acts again
_END_S = 20.0
_REST_S = 0.2


@dataclass(frozen=True)
class TopOptions:
    """Options of tracing.

    Attributes:
        interval_s: length of a round.
        arm: arming method, or auto.
        probe: probe type, or auto.
        directory: directory of the recording to write; None: no recording.
        max_overhead: share of a core, or of the target's CPU time if that is more, that tracing may cost before rounds
            are made longer.
        writers: trace threads and stacks.
    """

    interval_s: float = 1.0
    arm: str = "auto"
    probe: str = "auto"
    directory: Path | None = None
    max_overhead: float = DEFAULT_MAX
    writers: bool = False


class Live(TargetReader):
    """Traces a target. find() returns it; it is called in the thread, so that its errors are shown."""

    def __init__(
        self, find: Callable[[], TargetSet], options: TopOptions, question: ConvergenceQuestion
    ) -> None:
        super().__init__(question)
        self.options = options
        self.about = TargetInfo("starting", interval_s=options.interval_s)
        self._find = find
        self._session: Session | None = None
        self._history = History()
        self._error: Exception | None = None
        self._fault_s = 0.0
        self._cost: Cost | None = None
        self._settled = (
            0  # rounds since the interval changed; negative: rounds still have the old length
        )
        self._note = ""
        self._tables: PageTableWatch | None = None

    @property
    def target(self) -> TargetSet | None:
        """The target; None before it was found."""
        return None if self._session is None else self._session.options.target

    @property
    def target_is_command(self) -> bool:
        """True if redirty started the target."""
        return self.target is not None and self.target.kind == "command"

    @property
    def interval_s(self) -> float:
        """Length of a round in seconds."""
        session = self._session
        return self.options.interval_s if session is None else session.interval_s

    def set_interval(self, seconds: float, note: str = "") -> None:
        """Change the length of rounds, including the current one. note: shown with the cost."""
        session = self._session
        if session is None:
            return
        session.interval_s = max(seconds, MIN_INTERVAL_S)
        with self._wake:
            self._settled = -_SETTLE_ROUNDS
            self._note = note
            self.about = replace(self.about, interval_s=session.interval_s)
            self._changed()

    def request_stop(self) -> None:
        """See Reader."""
        super().request_stop()
        if self._session is not None:
            self._session.stop()

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader. Rounds are recorded in another thread, so that questions are answered meanwhile."""
        self.publish(self.snapshot(History(), ReaderState.STARTING))
        target = self._find()
        options = self.options
        recording = RecordingOptions(
            target,
            options.directory,
            options.interval_s,
            arm=options.arm,
            probe=options.probe,
            events=options.writers,
            stacks=options.writers,
        )
        self._session = Session(recording, make_sink=self._sink)
        self.about = replace(self.about, title=one_line(target.description))
        if self.stopping:  # before there was a session to stop
            return
        runner = threading.Thread(target=self._record, args=(self._session,), name="session")
        runner.start()
        try:
            while runner.is_alive() and not self.stopping:
                with self._wake:
                    if not self.changed:
                        self._wake.wait(1.0)
                    if not self.changed:
                        continue
                    self.changed = False
                    question = self.question
                self._publish(ReaderState.LIVE if len(self._history) else ReaderState.STARTING, "")
                self._rest(question)
        finally:
            self._session.stop()
            runner.join(_END_S)
            if self._tables is not None:
                self._tables.close()
        self._publish_end()

    def _rest(self, question: ConvergenceQuestion) -> None:
        """Wait, so that short rounds are not drawn one by one, or until the question changes."""
        with self._wake:
            self._wake.wait_for(lambda: self.question != question or self.stopping, _REST_S)

    def _publish_end(self) -> None:
        if isinstance(self._error, TargetEndedError):
            self._publish(ReaderState.ENDED, str(self._error))
        elif self._error is not None:
            raise self._error
        elif not self.stopping and isinstance(self.target, Command):
            status = self.target.status
            code = "" if status is None else f", exit status {status}"
            self._publish(ReaderState.DONE, f"{self.target.description} has ended{code}")

    def _publish(self, state: ReaderState, message: str) -> None:
        with self._wake:
            history, cost = self._history.copy(), self._cost
        shown = self.snapshot(history, state, message, force=state is not ReaderState.LIVE)
        self.publish(
            replace(
                shown,
                cost=cost,
                tables=None if self._tables is None else self._tables.latest,
                writers=history.writers() if self.options.writers else None,
                note=self._note,
            )
        )

    # ---- in the recording thread ----

    def _record(self, session: Session) -> None:
        try:
            session.run()
        except Exception as e:
            log.debug("the recording thread ended", exc_info=True)
            self._error = e
        with self._wake:
            self._wake.notify_all()

    def _sink(self, options: RecordingOptions, recorder: Recorder, names: ProcessNames) -> LiveSink:
        self._fault_s = fault_s(recorder.members.method)
        self._tables = PageTableWatch(lambda: [s.pid for s in list(recorder.spaces.values())])
        self._tables.start()
        sink = LiveSink(options, recorder, names, self._add)
        first = [f"{one_line(str(p['comm']))}" for p in names.processes.values()][:3]
        more = ", …" if len(names.processes) > len(first) else ""
        title = f"{options.target.description}: {', '.join(first)}{more}"
        with self._wake:
            self.about = TargetInfo(
                title=one_line(title),
                probe=recorder.tracer.probe,
                arm=recorder.members.method,
                interval_s=options.interval_s,
                directory="" if options.directory is None else str(options.directory),
            )
            self._changed()
        return sink

    def _add(self, summary: RoundSummary) -> None:
        with self._wake:
            self._history.add(summary)
            recent = self._history.recent
            self._settled = min(self._settled + 1, MEAN)
            if self._settled > 0:
                recent = recent[-self._settled :]
            self._cost = cost_of(recent, self._fault_s, self.options.max_overhead)
            settled_cost = self._cost if self._settled >= _SETTLE_ROUNDS else None
            self._changed()
        if settled_cost is not None and settled_cost.too_high:
            self._lengthen(settled_cost)

    def _lengthen(self, cost: Cost) -> None:
        before = self.interval_s
        after = longer_interval(before, cost)
        if after > before:
            self.set_interval(
                after,
                f"rounds lengthened from {before:.3g} s to {after:.3g} s: tracing cost "
                f"{cost.share:.1%}, limit {cost.limit:.1%}",
            )


class LiveSink:
    """Passes a summary of each round to the reader, and writes files if a recording is requested."""

    def __init__(
        self,
        options: RecordingOptions,
        recorder: Recorder,
        names: ProcessNames,
        add: Callable[[RoundSummary], None],
    ) -> None:
        self._recorder = recorder
        self._names = names
        self._add = add
        self._curves = WindowCurves(max_rounds=KEPT)
        self._within = WrittenWithin()
        self._cpu = CpuTimeSampler()
        self._own_s = time.process_time()
        self._writers: WriterCounts | None = None
        self._follow_fork = options.target.follow_fork
        for space in recorder.spaces.values():
            names.note(space.pid)
        if options.events:
            comms = {pid: str(p["comm"]) for pid, p in names.processes.items()}
            self._writers = WriterCounts(recorder.tracer, comms)
        self._once: OnceCounter | None = None
        self._files: Outputs | None = None
        if options.directory is not None:
            self._files = Outputs(replace(options, events=False, stacks=False), recorder, names)
        else:
            self._once = OnceCounter()
            self._once.start(recorder.spaces)
        self._cpu.take(space.pid for space in recorder.spaces.values())

    def tick(self) -> None:
        """See RoundSink."""
        if self._writers is not None:
            self._writers.tick()
        if self._files is not None:
            self._files.tick()
        elif self._follow_fork:
            self._names.poll()

    def add(self, result: Round) -> None:
        """See RoundSink."""
        if self._once is not None:
            once = self._once.count(result, self._recorder.spaces)
        else:
            assert self._files is not None
            self._files.add(result)
            assert self._files.once.last is not None
            once = self._files.once.last
        points = [*inside(result, once), *self._curves.add(result, once).points]
        written_1s = self._within.add(points)
        cpu_s = self._cpu.take(space.pid for space in result.spaces)
        before, self._own_s = self._own_s, time.process_time()
        writers = () if self._writers is None else self._writers.take()
        hooks = self._recorder.tracer.hooks
        summary = of_round(result, hooks, points_of(points), cpu_s, writers, once, written_1s)
        self._add(replace(summary, own_cpu_s=self._own_s - before))

    def hurry(self) -> None:
        """See RoundSink."""
        if self._files is not None:
            self._files.hurry()

    def close(self, *, complete: bool, lost_events: int, extra: dict[str, Any]) -> None:
        """See RoundSink."""
        if self._writers is not None:
            self._writers.close()
        if self._files is not None:
            self._files.close(complete=complete, lost_events=lost_events, extra=extra)

    def done(self) -> None:
        """See RoundSink."""
        if self._files is not None:
            self._files.done()
