"""Measures how long a target is stopped in addition to arming and copying, by stopping it as a mirror does."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable

from redirty.collector.mirror.image.core_notes import read_proc_files
from redirty.collector.mirror.stop_time import Timeline, urgent
from redirty.collector.model.stop_cost import StopSteps
from redirty.collector.ptrace.freezer_client import Freezer

_STOPS = 3  # the median of them counts: a busy moment of the machine spoils one
_PAUSE_S = 0.2  # between them, in which the target runs
_LIMIT_S = 1.0  # a target that is not stopped within this time goes on


def measure_stop(members: Callable[[], Iterable[int]]) -> StopSteps:
    """Stop a target a few times for as long as that takes, and return the medians.

    Args:
        members: returns the PIDs of the target's processes.

    Raises:
        FreezeError: it cannot be stopped; it keeps running.
        OSError: a process of it ended.
    """
    freezer = Freezer()
    with contextlib.closing(freezer):
        found = []
        for number in range(_STOPS):
            if number:
                time.sleep(_PAUSE_S)
            found.append(_stop(freezer, sorted(members())))
    return StopSteps(
        statistics.median(s.freeze_s for s in found),
        statistics.median(s.registers_s for s in found),
    )


def _stop(freezer: Freezer, pids: list[int]) -> StopSteps:
    with urgent():
        timeline = Timeline()
        try:
            freezer.stop(pids, _LIMIT_S, _LIMIT_S)
            timeline.end("freeze")
            freezer.request_states()
            freezer.states()
            for pid in pids:
                read_proc_files(pid, ())
        finally:
            if freezer.frozen:
                freezer.release()
        timeline.end("registers")
    return StopSteps(timeline.duration_s("freeze"), timeline.duration_s("registers"))
