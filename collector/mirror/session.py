"""A mirror: what it needs is made, the target armed, and all let go of at the end, whatever happens."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from redirty.collector.arming.methods import choose
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
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.switchover import Means, Switchover, living
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.ptrace.freezer_client import Freezer
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.command import Command
from redirty.collector.tracking.rounds import Recorder
from redirty.collector.tracking.start import start_command

_SLOTS_OF_MANY, _SLOTS_OF_FEW = 1024, 64


class MirrorSession:
    """One mirror. stop() may be called from a signal handler."""

    def __init__(
        self, wish: MirrorRequest, open_sink: Callable[[], PageSink], listener: MirrorObserver
    ) -> None:
        self.wish = wish
        self._open_sink = open_sink
        self.listener = listener
        self.interrupted = False
        self.information: dict[str, Any] = {}

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Ends it at the next occasion; there will be no mirror."""
        self.interrupted = True

    def check(self) -> None:
        """Ends what goes on by an exception when it is not wanted any more."""
        if self.interrupted:
            raise KeyboardInterrupt

    def run(self) -> dict[str, Any]:
        """Mirrors; what mirror.json says.

        Errors: RedirtyError; TargetEndedError. There is no mirror then, and the target runs on.
        """
        retain_freed_memory()
        raise_fd_limit()
        old = {n: signal.signal(n, self.stop) for n in termination_signals()}
        injector = Injector()
        target = self.wish.target
        tracer = recorder = holding = sink = state = engine = None
        try:
            way = choose(self.wish.arm, injector)
            holding = Freezer()
            sink = self._open_sink()
            tracer = Tracer(self._options())
            trim_heap()
            drop_compiler_memory()
            recorder = Recorder(tracer, target, way, injector)
            state = MirrorState(sink, scan=scan_supported(), part_of=partial(_part_of, recorder))
            engine = Pipeline(sink, self.wish.compress, keep_lists=self.wish.keep_lists)
            outlook = Estimator(self.wish, tracer.logged)
            if isinstance(target, Command):
                start_command(recorder, target)
            else:
                recorder.begin()
            if self.wish.network is not None:
                pids = set(living(recorder).values())
                self.wish.network.require_possible(holding, pids)
            means = Means(self.wish, self.listener, outlook, recorder, state, engine, sink)
            ending = Switchover(means, holding)
            self.information = Precopy(means, ending, self.check).run()
            return self.information
        finally:
            if holding is not None:
                holding.close()  # before all else: whatever stands still runs
            if recorder is not None:
                recorder.close()
            if engine is not None:
                engine.close()
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


def _part_of(recorder: Recorder, number: int) -> Mappings | None:
    """What was armed of a space, where the rest of it does not belong to the target."""
    return recorder.spaces[number].mappings if recorder.targets.partial else None
