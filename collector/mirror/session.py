"""A mirror from start to end: creates its parts, arms the target, and closes everything in every case."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType
from typing import Any

from redirty.collector.arming.methods import SOFT_DIRTY_NOTE, choose
from redirty.collector.bpf.loader import Options, regions_for
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.linux.malloc import (
    drop_compiler_memory,
    raise_fd_limit,
    retain_freed_memory,
    trim_heap,
)
from redirty.collector.linux.maps import Mappings
from redirty.collector.linux.pagemap import scan_supported
from redirty.collector.linux.signals import termination_signals
from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.observer import MirrorObserver
from redirty.collector.mirror.pipeline import Pipeline
from redirty.collector.mirror.precopy import Precopy
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.request import VERIFY_SENT, MirrorRequest
from redirty.collector.mirror.running import RunningMirror, living
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.switchover import Switchover
from redirty.collector.mirror.verification import require_hashes
from redirty.collector.ptrace.freezer_client import Freezer
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.command import Command
from redirty.collector.tracking.rounds import Recorder
from redirty.collector.tracking.slots import slot_count
from redirty.collector.tracking.start import start_command


class MirrorSession:
    """Makes one mirror. information: the contents of mirror.json, after run()."""

    def __init__(self, request: MirrorRequest, observer: MirrorObserver) -> None:
        self.request = request
        self.observer = observer
        self.interrupted = False
        self.information: dict[str, Any] = {}

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Cancel as soon as possible; may be called from a signal handler or another thread."""
        self.interrupted = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if the mirror was cancelled."""
        if self.interrupted:
            raise KeyboardInterrupt

    def run(self) -> dict[str, Any]:
        """Make the mirror, and return the contents of mirror.json.

        Raises:
            RedirtyError: there is no mirror, and the target runs.
            TargetEndedError: the target ended, and there is no mirror.
        """
        retain_freed_memory()
        raise_fd_limit()
        with contextlib.ExitStack() as stack:
            for number in termination_signals():
                stack.callback(signal.signal, number, signal.signal(number, self.stop))
            if isinstance(self.request.target, Command):
                stack.callback(self.request.target.abandon)
            injector = Injector()
            stack.callback(injector.close)
            method = choose(self.request.arm, injector)
            if method == "soft-dirty":
                self.observer.on_note(SOFT_DIRTY_NOTE)
            freezer = Freezer()
            try:
                self.information = self._run(stack, injector, method, freezer)
            finally:
                freezer.close()  # before everything on the stack: all that is stopped resumes
        return self.information

    def _run(
        self, stack: contextlib.ExitStack, injector: Injector, method: str, freezer: Freezer
    ) -> dict[str, Any]:
        """Make the mirror; the stack closes all parts that are created here, the recorder first."""
        request = self.request
        rate_limiter = RateLimiter(request.bandwidth)
        rate_limiter.check = self.check
        sink = request.destination.open(rate_limiter)
        stack.callback(sink.close)
        if request.verify == VERIFY_SENT:
            require_hashes(sink)
        tracer = Tracer(self._tracer_options())
        stack.callback(tracer.close)
        trim_heap()
        drop_compiler_memory()
        state = MirrorState(
            sink, scan=scan_supported(), mirrored=lambda number: _mirrored(recorder, number)
        )
        stack.callback(state.close)
        pipeline = Pipeline(sink, request.compress)
        stack.callback(pipeline.close)
        recorder = Recorder(tracer, request.target, method, injector)
        stack.callback(recorder.close)  # lifts the write protection
        mirror = RunningMirror(
            request=request,
            observer=self.observer,
            estimator=Estimator(request, tracer.logged),
            recorder=recorder,
            state=state,
            pipeline=pipeline,
            sink=sink,
            freezer=freezer,
            check=self.check,
        )
        if isinstance(request.target, Command):
            start_command(recorder, request.target)
        else:
            recorder.begin()
        if request.network is not None:
            request.network.require_possible(freezer, set(living(recorder).values()))
        return Precopy(mirror, Switchover(mirror)).run()

    def _tracer_options(self) -> Options:
        target = self.request.target
        return Options(
            probe=self.request.probe,
            regions=regions_for(target.members()),
            slots=slot_count(target),
            follow_fork=target.follow_fork,
        )


def _mirrored(recorder: Recorder, number: int) -> Mappings | None:
    """Return the armed mappings of a space if the rest of it does not belong to the target, else None."""
    return recorder.spaces[number].mappings if recorder.targets.partial else None
