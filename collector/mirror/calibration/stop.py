"""Measures how long a target is stopped in addition to copying, by stopping it as a mirror does."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import astuple

from redirty.collector.linux.pagemap import scan_supported
from redirty.collector.mirror.image.core_notes import read_proc_files
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.stop_time import Timeline, urgent
from redirty.collector.model.stop_cost import StopSteps
from redirty.collector.ptrace.freezer_client import Freezer
from redirty.collector.tracking.rounds import Recorder

_STOPS = 3  # the median of them counts: a busy moment of the machine spoils one
_PAUSE_S = 0.2  # between them, in which the target runs
_LIMIT_S = 1.0  # a target that is not stopped within this time goes on


def measure_stop(recorder: Recorder) -> StopSteps:
    """Stop an armed target a few times for as long as that takes, and return the medians; flush_s is 0.

    The rounds that end meanwhile are not returned.

    Raises:
        FreezeError: it cannot be stopped; it keeps running.
        TargetEndedError: it has ended.
        OSError: a process of it ended.
    """
    with contextlib.closing(Freezer()) as freezer:
        found = []
        for number in range(_STOPS):
            if number:
                time.sleep(_PAUSE_S)
            pids = sorted(s.pid for s in recorder.spaces.values() if not s.gone)
            found.append(_stop(freezer, recorder, pids, _scan_s(pids)))
    columns = zip(*(astuple(steps) for steps in found), strict=True)
    return StopSteps(*(statistics.median(column) for column in columns))


def _scan_s(pids: list[int]) -> float:
    """Return the seconds in which all pages are found. The target runs, as that takes no less time then."""
    scan = scan_supported()
    with contextlib.ExitStack() as stack:
        spaces = [
            stack.enter_context(contextlib.closing(SpaceSource(0, pid, scan=scan))) for pid in pids
        ]
        with urgent():
            started = time.monotonic()
            for space in spaces:
                space.refresh()
                space.current_pages()
            return time.monotonic() - started


def _stop(freezer: Freezer, recorder: Recorder, pids: list[int], scan_s: float) -> StopSteps:
    with urgent():
        timeline = Timeline()
        try:
            freezer.stop(pids, _LIMIT_S, _LIMIT_S)
            timeline.end("freeze")
            freezer.request_states()
            recorder.end_round(stopped=True)
            timeline.end("arm")
            freezer.states()
            for pid in pids:
                read_proc_files(pid, ())
        finally:
            if freezer.frozen:
                freezer.release()
        timeline.end("registers")
    freeze_s, arm_s, registers_s = map(timeline.duration_s, ("freeze", "arm", "registers"))
    return StopSteps(freeze_s, arm_s, scan_s, 0.0, registers_s)
