"""The files of a recording: the main ones, and, if requested, events, stacks and page frames."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from typing import Any

from redirty.collector.bpf.kernel_clock import kernel_ns
from redirty.collector.files import FirstError
from redirty.collector.foreign.symbols import Symbols
from redirty.collector.linux.cpu_time import BusiestThreadSampler
from redirty.collector.metrics.counted_once import OnceCounter
from redirty.collector.metrics.frame_tracking import FrameTracker
from redirty.collector.recording.events import EventFile
from redirty.collector.recording.options import RecordingOptions
from redirty.collector.recording.physical import PhysicalFiles
from redirty.collector.recording.process_names import ProcessNames
from redirty.collector.recording.sharers import Sharers
from redirty.collector.recording.stacks import StackFile
from redirty.collector.recording.writer import Meta, RecordingWriter
from redirty.collector.tracking.rounds import Recorder, Round


class Outputs:
    """The files of a running recording in its directory, `folder`; a RoundSink.

    once: counts pages of shared memory once.

    Raises: RedirtyError when a file cannot be written.
    """

    def __init__(self, options: RecordingOptions, recorder: Recorder, names: ProcessNames) -> None:
        self._options = options
        self._recorder = recorder
        self._names = names
        self._events: EventFile | None = None
        self._stacks: StackFile | None = None
        self._physical: FrameTracker | None = None
        self._frames: PhysicalFiles | None = None
        tracer = recorder.tracer
        for space in recorder.spaces.values():
            names.note(space.pid)
        started = datetime.fromtimestamp(
            time.time() - (time.monotonic_ns() - recorder.started_ns) / 1e9, tz=UTC
        )
        meta = Meta(
            target=self._target(),
            probe=tracer.probe,
            arm=recorder.members.method,
            interval_s=options.interval_s,
            kernel=platform.release(),
            hooks=tracer.hooks,
            extra={"refused_probes": tracer.refused, "stopped_s": self._stopped_s()},
            started=started,
        )
        assert options.directory is not None
        self._recording = RecordingWriter(options.directory, meta)
        self.folder = folder = self._recording.folder
        if options.events:
            self._events = EventFile(folder, kernel_ns(recorder.started_ns))
        if options.stacks:
            comms = {pid: str(p["comm"]) for pid, p in names.processes.items()}
            self._stacks = StackFile(folder, tracer, Symbols(), comms)
        if options.physical:
            self._frames = PhysicalFiles(folder)
            self._physical = FrameTracker()
        self.once = OnceCounter()
        self.once.start(recorder.spaces)
        self._sharers = Sharers(self._members())
        self._busiest = None
        if options.target.kind == "vm":
            self._busiest = BusiestThreadSampler(*options.target.pids)

    def _target(self) -> dict[str, Any]:
        """Return the description of the target for meta.json."""
        processes = sorted(self._names.processes.values(), key=lambda p: int(p["pid"]))
        target = self._options.target
        first = processes[0] if processes else {}
        return {
            "kind": target.kind,
            "description": target.description,
            "pids": [p["pid"] for p in processes],
            "comm": first.get("comm", ""),
            "cmdline": first.get("cmdline", ""),
            "processes": processes,
        }

    def _members(self) -> frozenset[int]:
        """Return the target's current processes."""
        return frozenset(space.pid for space in self._recorder.spaces.values())

    def _stopped_s(self) -> float:
        """Return the total seconds for which processes of the target were stopped to be armed."""
        return round(self._recorder.members.stopped_s, 6)

    def tick(self) -> None:
        """Read what would be lost if it were not read often: events, names of processes."""
        ring = self._recorder.tracer.ring
        if ring is not None and self._events is not None:
            self._events.add(ring.take())
        if self._stacks is not None:
            self._stacks.poll()
        if self._options.target.follow_fork:
            self._names.poll()

    def add(self, result: Round) -> None:
        """Write a round."""
        # First the frames of its pages, before they change.
        physical = None
        if self._physical is not None and self._frames is not None:
            physical = self._physical.locate(result, self._recorder.spaces)
            self._frames.add(result.number, physical)
        self._sharers.members = self._members()
        for space in result.spaces:
            if space.pid not in self._names.processes:
                self._names.note(space.pid)
        once = self.once.count(result, self._recorder.spaces)
        busiest_s = None if self._busiest is None else self._busiest.take()
        self._recording.add(result, physical, once, busiest_s)

    def hurry(self) -> None:
        """See RoundSink."""
        if self._stacks is not None:
            self._stacks.hurry()

    def close(self, *, complete: bool, lost_events: int, extra: dict[str, Any]) -> None:
        """Finish every file, even if another one fails, then raise the first error."""
        errors = FirstError()
        if self._events is not None:
            with errors.caught():
                if self._recorder.tracer.ring is not None:
                    self._events.add(self._recorder.tracer.ring.take())
                self._events.close()
        if self._stacks is not None:
            with errors.caught():
                self._stacks.close()
        if self._physical is not None and self._frames is not None:
            self._physical.close()
            with errors.caught():
                self._frames.close()
        shared = self._sharers.finish(self._names.processes)
        self._recording.meta.target = self._target()
        with errors.caught():
            self._recording.close(
                complete=complete and errors.error is None,
                extra={
                    "stopped_s": self._stopped_s(),
                    "by_log_only": self._recorder.members.by_log_only,
                    "pinned_kib": self._recorder.members.pinned_kib(),
                    "moved_pages": self._recorder.members.moved_pages(),
                    "unarmed_mappings": self._recorder.members.unarmed(),
                    "lost_events": lost_events,
                    **shared,
                    **extra,
                },
            )
        errors.raise_first()

    def done(self) -> None:
        """See RoundSink."""
        self.folder.give_to_caller()
