"""What a session writes: the recording, and with the switches events, stacks and frames."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from typing import Any

from redirty.collector.files import FirstError
from redirty.collector.metrics.frame_tracking import FrameTracker
from redirty.collector.recording.events import EventFile
from redirty.collector.recording.options import RecordingOptions
from redirty.collector.recording.physical import PhysicalFiles
from redirty.collector.recording.process_names import ProcessNames
from redirty.collector.recording.sharers import Sharers
from redirty.collector.recording.stacks import StackFile
from redirty.collector.recording.writer import Meta, RecordingWriter
from redirty.collector.target.command import Command
from redirty.collector.target.guest import Guest
from redirty.collector.target.targets import Cgroup, Pids, Tree
from redirty.collector.tracking.rounds import Recorder, Round


class Outputs:
    """The files of a recording that has begun. Use: tick() many times a second, add() after each
    round, close().

    Errors: RedirtyError when a file cannot be written.
    """

    def __init__(self, plan: RecordingOptions, recorder: Recorder, family: ProcessNames) -> None:
        self._plan = plan
        self._recorder = recorder
        self._family = family
        self._events: EventFile | None = None
        self._stacks: StackFile | None = None
        self._physical: FrameTracker | None = None
        self._frames: PhysicalFiles | None = None
        tracer = recorder.tracer
        for space in recorder.spaces.values():
            family.note(space.pid)
        started = datetime.fromtimestamp(
            time.time() - (time.monotonic_ns() - recorder.started_ns) / 1e9, tz=UTC
        )
        meta = Meta(
            target=self._target(),
            probe=tracer.probe,
            arm=recorder.members.method,
            interval_s=plan.interval_s,
            kernel=platform.release(),
            features=tracer.attached,
            extra={"refused_probes": tracer.refused, "stopped_s": self._stopped_s()},
            started=started,
        )
        assert plan.directory is not None
        self._recording = RecordingWriter(plan.directory, meta)
        if plan.events:
            self._events = EventFile(plan.directory, recorder.started_ns)
        if plan.stacks:
            names = {pid: str(p["comm"]) for pid, p in family.processes.items()}
            self._stacks = StackFile(plan.directory, tracer, tracer.symbols(), names)
        if plan.physical:
            self._frames = PhysicalFiles(plan.directory)
            self._physical = FrameTracker()
        self._sharers = Sharers(self._members())

    def _target(self) -> dict[str, Any]:
        processes = sorted(self._family.processes.values(), key=lambda p: int(p["pid"]))
        target = self._plan.target
        kinds = {Pids: "pids", Tree: "tree", Cgroup: "cgroup", Command: "command", Guest: "vm"}
        first = processes[0] if processes else {}
        return {
            "kind": kinds.get(type(target), "other"),
            "description": target.description,
            "pids": [p["pid"] for p in processes],
            "comm": first.get("comm", ""),
            "cmdline": first.get("cmdline", ""),
            "processes": processes,
        }

    def _members(self) -> frozenset[int]:
        """The target's processes now."""
        return frozenset(space.pid for space in self._recorder.spaces.values())

    def _stopped_s(self) -> float:
        """For how long, in all, processes of the target stood still to be armed."""
        return round(self._recorder.members.stopped_s, 6)

    def tick(self) -> None:
        """Takes what would be lost when nobody came for long: events, names of processes."""
        ring = self._recorder.tracer.ring
        if ring is not None and self._events is not None:
            self._events.add(ring.take())
        if self._stacks is not None:
            self._stacks.poll()
        if self._plan.target.follow_fork:
            self._family.poll()

    def add(self, result: Round) -> None:
        """Writes a round down."""
        # First of all where its pages lie, before that changes.
        physical = None
        if self._physical is not None and self._frames is not None:
            physical = self._physical.look(result, self._recorder.spaces)
            self._frames.add(result.number, physical)
        self._sharers.members = self._members()
        for space in result.spaces:
            if space.pid not in self._family.processes:
                self._family.note(space.pid)
        self._recording.add(result, physical)

    def close(self, *, complete: bool, lost_events: int, extra: dict[str, Any]) -> None:
        """Writes the rest; every file is tried."""
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
        shared = self._sharers.finish(self._family.processes)
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
