"""A recording session: load, arm, round after round on schedule, into a recording."""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from redirty.collector.arm.base import GoneError
from redirty.collector.arm.choose import choose
from redirty.collector.arm.injection import Injector
from redirty.collector.attach.tracer import Options, Tracer
from redirty.collector.errors import RedirtyError, TargetEndedError
from redirty.collector.export.events import EventFile
from redirty.collector.export.files import FirstError, require_new
from redirty.collector.export.recording import Meta, Recording
from redirty.collector.export.stacks import StackFile
from redirty.collector.family import Family
from redirty.collector.host.command import Command
from redirty.collector.host.process import regions_for
from redirty.collector.host.targets import Cgroup, Pids, TargetSet, Tree
from redirty.collector.memory import give_back_freed_memory, keep_freed_memory
from redirty.collector.rounds import Recorder, Round

log = logging.getLogger(__name__)

_TICK_S = 0.25
_EVENT_TICK_S = 0.02  # the ring must not fill up in between
_SLOTS_OF_MANY, _SLOTS_OF_FEW = 1024, 64


@dataclass(frozen=True)
class Plan:
    """What to record. interval_s > 0; count: rounds, 0: no limit; duration_s: 0: no limit."""

    target: TargetSet
    directory: Path
    interval_s: float = 1.0
    count: int = 0
    duration_s: float = 0.0
    arm: str = "auto"
    probe: str = "auto"
    events: bool = False
    stacks: bool = False

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return bool(self.count or self.duration_s)


class Session:
    """One recording from start to end. stop() may be called from a signal handler."""

    def __init__(
        self,
        plan: Plan,
        on_round: Callable[[Round], None] = lambda r: None,
        on_armed: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.on_round = on_round
        self.on_armed = on_armed
        self.interrupted = False
        self._finished = False
        self.rounds = 0
        self.lost_events = 0
        self.by_log_only = 0
        self.family = Family()
        self._events: EventFile | None = None
        self._stacks: StackFile | None = None
        self._recording: Recording | None = None

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Ends it at the next occasion; what is done is kept."""
        self.interrupted = True

    def finish(self) -> None:
        """Ends it at the next occasion, as planned; may be called from another thread."""
        self._finished = True

    # ---- start ----

    def run(self) -> None:
        """Records until the plan is done, the target ended, or stop().

        Errors: RedirtyError; TargetEndedError when the target ended early. The recording made so
        far is valid in every case.
        """
        require_new(self.plan.directory)
        keep_freed_memory()
        old = {
            n: signal.signal(n, self.stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        injector = Injector()
        tracer = None
        recorder = None
        try:
            way = choose(self.plan.arm, injector)
            if self.plan.target.follow_fork:
                self.family.listen()  # pyroute2 takes a while to import: before anything is armed
            tracer = Tracer(self._options())
            give_back_freed_memory()
            recorder = Recorder(tracer, self.plan.target, way, injector)
            if isinstance(self.plan.target, Command):
                start_command(recorder, self.plan.target)
            else:
                recorder.begin()
            self._open(recorder)
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
        )

    def _open(self, recorder: Recorder) -> None:
        for space in recorder.spaces.values():
            self.family.note(space.pid)
        plan = self.plan
        started = datetime.fromtimestamp(
            time.time() - (time.monotonic_ns() - recorder.started_ns) / 1e9, tz=UTC
        )
        meta = Meta(
            target=self._target(recorder),
            probe=recorder.tracer.probe,
            arm=recorder.members.way,
            interval_s=plan.interval_s,
            kernel=platform.release(),
            features=recorder.tracer.attached,
            extra={"refused_probes": recorder.tracer.refused, "stopped_s": _stopped(recorder)},
            started=started,
        )
        self._recording = Recording(plan.directory, meta)
        if plan.events:
            self._events = EventFile(plan.directory, recorder.started_ns)
        if plan.stacks:
            names = {pid: str(p["comm"]) for pid, p in self.family.processes.items()}
            self._stacks = StackFile(
                plan.directory, recorder.tracer, recorder.tracer.symbols(), names
            )

    def _target(self, recorder: Recorder) -> dict[str, Any]:
        processes = sorted(self.family.processes.values(), key=lambda p: int(p["pid"]))
        kinds = {Pids: "pids", Tree: "tree", Cgroup: "cgroup", Command: "command"}
        first = processes[0] if processes else {}
        return {
            "kind": kinds.get(type(self.plan.target), "other"),
            "description": self.plan.target.description,
            "pids": [p["pid"] for p in processes],
            "comm": first.get("comm", ""),
            "cmdline": first.get("cmdline", ""),
            "processes": processes,
        }

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
                self._add(recorder.last_round(), recorder)
        except BaseException:
            recorder.close()
            with contextlib.suppress(RedirtyError):  # the first error is the one to tell
                self._finish(recorder, complete=False)
            raise
        recorder.close()
        stopped_by_hand = outcome == "interrupted" and not plan.bounded
        self._finish(recorder, complete=outcome == "planned" or to_its_end or stopped_by_hand)
        if outcome == "ended" and not to_its_end:
            n = self.rounds
            rounds = "1 complete round is" if n == 1 else f"{n} complete rounds are"
            raise TargetEndedError(
                f"{plan.target.description} ended before the recording was to end; "
                f"{rounds} kept in {plan.directory}"
            )

    def _rounds(self, recorder: Recorder) -> str:
        """Round after round: planned (all done), ended (the target did), or interrupted."""
        plan = self.plan
        start = recorder.started_ns / 1e9
        boundary = 1
        while True:
            due = start + boundary * plan.interval_s
            if plan.duration_s:
                due = min(due, start + plan.duration_s)
            alive = self._wait(recorder, due)
            if not alive and not self.interrupted:
                return "ended"
            try:
                result = recorder.end_round()
            except (TargetEndedError, GoneError):
                return "ended"
            self._add(result, recorder)
            # Missed boundaries are skipped, not made up for: the schedule never drifts.
            elapsed = time.monotonic() - start
            boundary = max(boundary + 1, int(elapsed / plan.interval_s) + 1)
            if self._finished or (plan.count and self.rounds >= plan.count):
                return "planned"
            if plan.duration_s and elapsed >= plan.duration_s:
                return "planned"
            if self.interrupted:
                return "interrupted"

    def _wait(self, recorder: Recorder, due: float) -> bool:
        """Sleeps until a boundary, or an interruption. False: the target ended."""
        tick_s = _EVENT_TICK_S if self._events else _TICK_S
        while not (self.interrupted or self._finished):
            step = min(due, time.monotonic() + _TICK_S)
            if not recorder.wait(step, lambda: self._tick(recorder), tick_s):
                return False
            if step >= due:
                break
        return True

    def _tick(self, recorder: Recorder) -> None:
        ring = recorder.tracer.ring
        if ring is not None and self._events is not None:
            self._events.add(ring.take())
        if self._stacks is not None:
            self._stacks.poll()
        if self.plan.target.follow_fork:
            self.family.poll()

    def _add(self, result: Round, recorder: Recorder) -> None:
        assert self._recording is not None
        self._tick(recorder)
        for space in result.spaces:
            if space.pid not in self.family.processes:
                self.family.note(space.pid)
        self._recording.add(result)
        self.rounds += 1
        self.lost_events += int(result.stats["lost"].sum() + result.stats["lost_events"].sum())
        self.on_round(result)

    def _finish(self, recorder: Recorder, *, complete: bool) -> None:
        assert self._recording is not None
        errors = FirstError()
        if self._events is not None:
            with errors.kept():
                if recorder.tracer.ring is not None:
                    self._events.add(recorder.tracer.ring.take())
                self._events.close()
        if self._stacks is not None:
            with errors.kept():
                self._stacks.close()
        self.by_log_only = recorder.members.by_log_only
        self._recording.meta.target = self._target(recorder)
        with errors.kept():
            self._recording.close(
                complete=complete and errors.error is None,
                extra={
                    "stopped_s": _stopped(recorder),
                    "by_log_only": recorder.members.by_log_only,
                    "lost_events": self.lost_events,
                    **self._exit_status(),
                },
            )
        errors.tell()

    def _exit_status(self) -> dict[str, int | None]:
        target = self.plan.target
        return {"exit_status": target.reap()} if isinstance(target, Command) else {}


def _stopped(recorder: Recorder) -> float:
    """For how long, in all, processes of the target stood still to be armed: seconds."""
    return round(recorder.members.stopped_s, 6)


def start_command(recorder: Recorder, command: Command) -> None:
    """Runs a command so that its first instruction is traced and its memory armed.

    Errors: RedirtyError when it cannot be run.
    """
    recorder.members.injector.hold_at_exec(command.pid)
    recorder.tracer.set_target(command.pid, command.pid, 0)
    command.release()
    try:
        descriptor = recorder.members.injector.wait_for_exec(
            command.pid, userfaultfd=recorder.members.way == "uffd"
        )
        command.check_started()
        recorder.members.adopt(command.pid, descriptor)
        recorder.begin()
    except GoneError:
        command.check_started()
        raise TargetEndedError(f"{command.argv[0]} ended at once") from None
    finally:
        recorder.members.injector.go()
