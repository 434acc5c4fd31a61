"""Relocates the page tables of a process to a NUMA node, in steps, each a short stop.

A step is carried out in the target by the injector (ptrace/helpers/relocation.py); this module
decides what a step moves and how large it may be, and reports what stays in place.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from redirty.collector.errors import (
    ArmError,
    GoneError,
    RedirtyError,
    TargetEndedError,
    require_resources,
)
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.smaps import detailed, pages_merged
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64
from redirty.collector.pagetables.planner import (
    HUGE,
    REGION,
    RelocationPlan,
    RelocationStep,
    StepPlanner,
    plan,
)
from redirty.collector.pagetables.preconditions import require_movable, require_node
from redirty.collector.pagetables.walker import Tables, Walker, leaves_by_node
from redirty.collector.ptrace.injector_client import AddressesInUseError, Injector

_FIRST_REGIONS = 2  # of the first step, when the duration of a step is not known yet
_GROWTH = 2  # from one step to the next, at most
_MARGIN = 0.6  # share of the requested pause that is planned: steps differ
_STOP_SHARE = 0.5  # share of the requested pause that may pass until the threads have stopped
_MIN_STOP_S = 0.01
_STOP_TRIES, _STOP_WAIT_S = 50, 0.02
_PASSES = 6  # each over what changed during the one before
_TRIAL_BYTES = 16 << 20
_NOT_MOVED = "kept changing, or the node has no free memory"


@dataclass(frozen=True)
class RelocationTarget:
    """A process whose page tables are to be relocated.

    Attributes:
        pid: The process.
        walker: Walks its page tables.
        nodes: The NUMA nodes of this machine.
    """

    pid: int
    walker: Walker
    nodes: NumaNodes


@dataclass(frozen=True)
class RelocationLimits:
    """Limits on what a relocation may do to its target.

    Attributes:
        max_pause_s: Seconds for which a step may stop it.
        split_huge: Whether huge pages may be split into small ones.
    """

    max_pause_s: float
    split_huge: bool = False


class StepObserver(Protocol):
    """Is notified of the steps of a relocation."""

    def step_started(self) -> None:
        """Handle the start of a step; called just before it."""

    def step_ended(self) -> None:
        """Handle the end of a step; called just after it, also when it failed."""

    def progress(self, done: int, total: int) -> None:
        """Report how many of the tables of a pass have been moved."""


class SilentObserver:
    """Ignores all steps."""

    def step_started(self) -> None:
        """Do nothing."""

    def step_ended(self) -> None:
        """Do nothing."""

    def progress(self, done: int, total: int) -> None:
        """Do nothing."""


@dataclass
class RelocationResult:
    """Result of a relocation.

    Attributes:
        before: Tables of the lowest level by node, before it.
        after: The same, after it.
        steps: Number of steps.
        moved: Number of tables moved, over all steps.
        longest_s: The longest stop.
        stopped_s: Sum of all stops.
        moves_s: The part of stopped_s in which the kernel moved memory.
        took_s: Duration of the whole relocation.
        kept: Reason -> number of tables that stay.
        in_use: Addresses that must not be moved, as the kernel uses them.
    """

    before: dict[int, int]
    after: dict[int, int] = field(default_factory=dict)
    steps: int = 0
    moved: int = 0
    longest_s: float = 0.0
    stopped_s: float = 0.0
    moves_s: float = 0.0
    took_s: float = 0.0
    kept: Counter[str] = field(default_factory=Counter)
    in_use: set[int] = field(default_factory=set)


def misplaced(tables: Tables, nodes: NumaNodes, node: int, *, split_huge: bool) -> U64:
    """Return the regions whose table is not on the node; with split_huge also those of huge pages."""
    leaves = tables.leaves
    wrong = nodes.of_frames(tables.physical[leaves] >> np.uint64(PAGE_SHIFT)) != node
    found = tables.address[leaves][wrong]
    return np.union1d(found, tables.huge) if split_huge else found


def plan_for(
    target: RelocationTarget, node: int, *, split_huge: bool, in_use: Collection[int] = ()
) -> tuple[RelocationPlan, Tables]:
    """Plan what is to be relocated now; also return the current tables.

    Raises:
        TargetEndedError: The process is gone.
    """
    try:
        tables = target.walker.walk(target.pid)
    except OSError as e:
        require_resources(e, f"cannot read the page tables of process {target.pid}")
        raise TargetEndedError(f"process {target.pid} ended") from None
    mappings = detailed(target.pid)
    merged = pages_merged()
    regions = misplaced(tables, target.nodes, node, split_huge=split_huge)
    planned = plan(regions, mappings, in_use, merged=merged)
    if len(tables.huge) and not split_huge:
        huge = plan(tables.huge, mappings, merged=merged)
        planned.kept.update(huge.kept)
        if len(huge.regions):
            planned.kept[HUGE] += len(huge.regions)
    return planned, tables


class StepSizer:
    """Limits the regions of a step so that the target is stopped no longer than requested.

    Attributes:
        regions: Maximum number of regions of the next step.
    """

    def __init__(self, max_pause_s: float) -> None:
        self.max_pause_s = max_pause_s
        self.regions = _FIRST_REGIONS

    def learn(self, regions: int, stopped_s: float, moves_s: float) -> None:
        """Adapt to a step: its number of regions, the seconds of its stop and of the moves in it."""
        each = moves_s / regions
        room = self.max_pause_s * _MARGIN - (stopped_s - moves_s)
        fits = int(room / each) if each > 0 else self.regions * _GROWTH
        self.regions = max(1, min(fits, self.regions * _GROWTH))


class Relocation:
    """Relocates the page tables of a process to a node."""

    def __init__(
        self,
        target: RelocationTarget,
        node: int,
        limits: RelocationLimits,
        observer: StepObserver | None = None,
    ) -> None:
        self._target = target
        self._node = node
        self._limits = limits
        self._observer: StepObserver = observer or SilentObserver()
        self._injector = Injector()
        self._sizer = StepSizer(limits.max_pause_s)
        self._result = RelocationResult({})

    def run(self) -> RelocationResult:
        """Relocate all tables that can be; the target is between two steps when this raises.

        Raises:
            RedirtyError: The target cannot be stopped, or its tables cannot be moved.
            TargetEndedError: The process is gone.
        """
        target, result = self._target, self._result
        require_node(target.nodes, self._node)
        require_movable(target.pid, self._node)
        started = time.monotonic()
        planned, tables = plan_for(target, self._node, split_huge=self._limits.split_huge)
        result.before = leaves_by_node(tables, target.nodes)
        try:
            for _ in range(_PASSES):
                count, before = len(planned.regions), result.moved
                changed = self._pass(planned)
                planned, tables = plan_for(
                    target, self._node, split_huge=False, in_use=result.in_use
                )
                if not len(planned.regions) or (not changed and result.moved == before + count):
                    break
        finally:
            self._injector.close()
        result.kept = planned.kept
        result.after = leaves_by_node(tables, target.nodes)
        if len(planned.regions):
            result.kept[_NOT_MOVED] = len(planned.regions)
        result.took_s = time.monotonic() - started
        return result

    def _pass(self, planned: RelocationPlan) -> bool:
        """Carry out every step of a plan once; return whether the mappings changed meanwhile."""
        steps = StepPlanner(planned)
        known = len(self._result.in_use)
        changed = False
        done = 0
        while step := steps.next(self._sizer.regions):
            try:
                self._step(step)
            except AddressesInUseError as e:
                # Now known for all threads: the rest is planned anew.
                self._result.in_use.update(e.addresses)
                if len(self._result.in_use) == known:
                    raise RedirtyError(str(e)) from None
                return True
            except ArmError as e:
                if e.code not in (errno.EAGAIN, errno.ENOMEM, errno.EFAULT):
                    raise RedirtyError(str(e)) from None
                changed = True
                continue
            except GoneError:
                raise TargetEndedError(f"process {self._target.pid} ended") from None
            done += step.regions
            self._observer.progress(done, len(planned.regions))
        return changed

    def _step(self, step: RelocationStep) -> None:
        """Carry out one step and add it to the result."""
        self._observer.step_started()
        try:
            stopped_s, moves_s = self._relocate(step)
        finally:
            self._observer.step_ended()
        self._sizer.learn(step.regions, stopped_s, moves_s)
        result = self._result
        result.steps += 1
        result.moved += step.regions
        result.longest_s = max(result.longest_s, stopped_s)
        result.stopped_s += stopped_s
        result.moves_s += moves_s

    def _relocate(self, step: RelocationStep) -> tuple[float, float]:
        """Make the injector move a step's memory; return the seconds of the stop and of the moves.

        Retries if a thread waits in the kernel (e.g. for a vfork child).
        """
        timeout_s = max(self._limits.max_pause_s * _STOP_SHARE, _MIN_STOP_S)
        for tried in range(_STOP_TRIES):
            try:
                return self._injector.relocate(
                    self._target.pid, self._node, step.runs, step.segments, timeout_s
                )
            except ArmError as e:
                if e.code != errno.ETIMEDOUT or tried == _STOP_TRIES - 1:
                    raise
            time.sleep(_STOP_WAIT_S)
        raise AssertionError


def trial_s() -> float:
    """Return the seconds that relocating one full table takes, measured on memory of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    )
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with (
        mmap.mmap(-1, _TRIAL_BYTES, flags=flags) as memory,
        mmap.mmap(-1, _TRIAL_BYTES + 2 * REGION, flags=flags, prot=mmap.PROT_READ) as other,
    ):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        array, hole = np.frombuffer(memory, np.uint8), np.frombuffer(other, np.uint8)
        array[::PAGE_SIZE] = 1
        home = int(array.ctypes.data)
        away = int(hole.ctypes.data)
        away += (home + PAGE_SIZE - away) % REGION
        started = time.monotonic()
        for source, to in ((home, away), (away, home)):
            if libc.mremap(source, _TRIAL_BYTES, _TRIAL_BYTES, 3, to) != to:
                raise RedirtyError("the kernel refused mremap of redirty's own memory")
        took = time.monotonic() - started
        del array, hole
    return took / (_TRIAL_BYTES // REGION)
