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
_LONG_S = 0.1  # one that takes longer disturbs the target enough
_PAUSE_S = 0.2  # between them, in which the target runs
_LIMIT_S = 2.0  # a target that is not stopped within this time goes on


def measure_stop(recorder: Recorder) -> StopSteps:
    """Stop an armed target a few times for as long as that takes, and return the medians; flush_s is 0.

    The rounds that end meanwhile are not returned.

    Raises:
        FreezeError: it cannot be stopped; it keeps running.
        TargetEndedError: it has ended.
        OSError: a process of it ended.
    """
    found: list[StopSteps] = []
    with contextlib.closing(Freezer()) as freezer:
        while len(found) < _STOPS and not (found and found[0].total_s > _LONG_S):
            if found:
                time.sleep(_PAUSE_S)
            pids = sorted(s.pid for s in recorder.spaces.values() if not s.gone)
            found.append(_stop(freezer, recorder, pids))
    columns = zip(*(astuple(steps) for steps in found), strict=True)
    return StopSteps(*(statistics.median(column) for column in columns))


def _stop(freezer: Freezer, recorder: Recorder, pids: list[int]) -> StopSteps:
    with contextlib.ExitStack() as stack:
        scan = scan_supported()
        spaces = [
            stack.enter_context(contextlib.closing(SpaceSource(0, pid, scan=scan))) for pid in pids
        ]
        stack.enter_context(urgent())
        timeline = Timeline()
        try:
            freezer.stop(pids, _LIMIT_S, _LIMIT_S)
            timeline.end("freeze")
            freezer.request_states()
            recorder.end_round(stopped=True)
            timeline.end("arm")
            for space in spaces:
                space.refresh()
                space.current_pages()
            timeline.end("scan")
            freezer.states()
            for pid in pids:
                read_proc_files(pid, ())
        finally:
            if freezer.frozen:
                freezer.release()
        timeline.end("registers")
    freeze_s, arm_s, scan_s, registers_s = map(
        timeline.duration_s, ("freeze", "arm", "scan", "registers")
    )
    return StopSteps(freeze_s, arm_s, scan_s, 0.0, registers_s)
