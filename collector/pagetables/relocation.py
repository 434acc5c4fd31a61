"""Relocating the page tables of a process to a NUMA node, step by step, each a short stop.

A step is done in the target by the injector (arm/relocation.py); this module says what a step is, how
large it may be, and what is left at the end.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from redirty.collector.errors import ArmError, GoneError, RedirtyError, TargetEndedError
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.smaps import detailed, pages_merged
from redirty.collector.pageset import U64
from redirty.collector.pagetables.planner import HUGE, REGION, RelocationPlan, StepPlanner, plan
from redirty.collector.pagetables.preconditions import require_movable, require_node
from redirty.collector.pagetables.walker import Tables, Walker, leaves_by_node
from redirty.collector.ptrace.injector_client import AddressesInUseError, Injector

_FIRST_REGIONS = 2  # of the first step, when it is not known yet how long one takes
_GROWTH = 2  # from one step to the next, at most
_MARGIN = 0.6  # of the pause asked for is planned: steps differ
_STOP_SHARE = 0.5  # of the pause asked for may go by until the threads have stopped
_LEAST_STOP_S = 0.01
_STOP_TRIES, _STOP_WAIT_S = 50, 0.02
_PASSES = 6  # over what changed meanwhile
_TRIAL_BYTES = 16 << 20


class StepObserver(Protocol):
    """Who wants to know of steps."""

    def begin(self) -> None:
        """Just before one."""

    def end(self) -> None:
        """Just after it."""


@dataclass
class RelocationResult:
    """What a relocation did. moved: steps' tables in all; longest_s, stopped_s: of all stops; moves_s: of
    that the kernel's moves; kept: reason -> tables that stay. before, after: tables by node, leaf
    level only."""

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
    """Regions whose table is not on the node; with split_huge those of huge pages, too."""
    leaves = tables.leaves
    wrong = nodes.of_frames(tables.physical[leaves] >> np.uint64(12)) != node
    found = tables.address[leaves][wrong]
    return np.union1d(found, tables.huge) if split_huge else found


def plan_for(
    pid: int,
    walker: Walker,
    nodes: NumaNodes,
    node: int,
    *,
    split_huge: bool,
    in_use: Collection[int] = (),
) -> tuple[RelocationPlan, Tables]:
    """What is to be relocated now. Errors: TargetEndedError."""
    try:
        tables = walker.walk(pid)
    except OSError:
        raise TargetEndedError(f"process {pid} ended") from None
    mappings = detailed(pid)
    merged = pages_merged()
    regions = misplaced(tables, nodes, node, split_huge=split_huge)
    wanted = plan(regions, mappings, in_use, merged=merged)
    if len(tables.huge) and not split_huge:
        huge = plan(tables.huge, mappings, merged=merged)
        wanted.kept.update(huge.kept)
        if len(huge.regions):
            wanted.kept[HUGE] += len(huge.regions)
    return wanted, tables


def relocate(
    pid: int,
    walker: Walker,
    nodes: NumaNodes,
    node: int,
    *,
    max_pause_s: float,
    split_huge: bool = False,
    on_step: Callable[[int, int], None] = lambda done, of: None,
    around: StepObserver | None = None,
) -> RelocationResult:
    """Moves a process's page tables to a node. on_step: called with tables done, and of how many.
    around: told when a step begins and ends.

    Errors: RedirtyError when it can't be stopped; TargetEndedError. It then is as between two steps.
    """
    require_node(nodes, node)
    require_movable(pid, node)
    begun = time.monotonic()
    wanted, tables = plan_for(pid, walker, nodes, node, split_huge=split_huge)
    result = RelocationResult(before=leaves_by_node(tables, nodes))
    injector = Injector()
    try:
        pace = StepSizer(max_pause_s)
        for _ in range(_PASSES):
            count, before = len(wanted.regions), result.moved
            changed = _one_pass(pid, node, injector, wanted, pace, result, on_step, around)
            wanted, tables = plan_for(
                pid, walker, nodes, node, split_huge=False, in_use=result.in_use
            )
            if not len(wanted.regions) or (not changed and result.moved == before + count):
                break
    finally:
        injector.close()
    result.kept = wanted.kept
    result.after = leaves_by_node(tables, nodes)
    left = len(wanted.regions)
    if left:
        result.kept["changed all the time, or there is no room on the node"] = left
    result.took_s = time.monotonic() - begun
    return result


class StepSizer:
    """How many regions a step may have, so that the target stands still for no longer than asked for."""

    def __init__(self, max_pause_s: float) -> None:
        self.max_pause_s = max_pause_s
        self.regions = _FIRST_REGIONS

    def learn(self, regions: int, stopped_s: float, moves_s: float) -> None:
        """After a step: of so many regions, with the seconds that it took."""
        each = moves_s / regions
        room = self.max_pause_s * _MARGIN - (stopped_s - moves_s)
        fits = int(room / each) if each > 0 else self.regions * _GROWTH
        self.regions = max(1, min(fits, self.regions * _GROWTH))


def _one_pass(
    pid: int,
    node: int,
    injector: Injector,
    wanted: RelocationPlan,
    pace: StepSizer,
    result: RelocationResult,
    on_step: Callable[[int, int], None],
    around: StepObserver | None,
) -> bool:
    """Every step of a plan, once; whether some were left out because other mappings are there now."""
    steps = StepPlanner(wanted)
    known = len(result.in_use)
    changed = False
    done = 0
    while step := steps.next(pace.regions):
        if around is not None:
            around.begin()
        try:
            stopped_s, moves_s = _try_step(pid, node, injector, step.runs, step.segments, pace)
        except AddressesInUseError as e:
            # Known for all threads now: what is left of the plan is made anew.
            result.in_use.update(e.addresses)
            if len(result.in_use) == known:
                raise RedirtyError(str(e)) from None
            return True
        except ArmError as e:
            if e.code not in (errno.EAGAIN, errno.ENOMEM, errno.EFAULT):
                raise RedirtyError(str(e)) from None
            changed = True
            continue
        except GoneError:
            raise TargetEndedError(f"process {pid} ended") from None
        finally:
            if around is not None:
                around.end()
        pace.learn(step.regions, stopped_s, moves_s)
        done += step.regions
        result.steps += 1
        result.moved += step.regions
        result.longest_s = max(result.longest_s, stopped_s)
        result.stopped_s += stopped_s
        result.moves_s += moves_s
        on_step(done, len(wanted.regions))
    return changed


def _try_step(
    pid: int,
    node: int,
    injector: Injector,
    runs: list[tuple[int, int]],
    segments: list[tuple[int, int, str]],
    pace: StepSizer,
) -> tuple[float, float]:
    """One step; a thread that waits in the kernel (for a vfork child, say) is given time."""
    timeout_s = max(pace.max_pause_s * _STOP_SHARE, _LEAST_STOP_S)
    for tried in range(_STOP_TRIES):
        try:
            return injector.relocate(pid, node, runs, segments, timeout_s)
        except ArmError as e:
            if e.code != errno.ETIMEDOUT or tried == _STOP_TRIES - 1:
                raise
        time.sleep(_STOP_WAIT_S)
    raise AssertionError


def trial_s() -> float:
    """Seconds that relocating one full table takes here, tried on memory of our own."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = ctypes.c_void_p
    libc.mremap.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
        *(ctypes.c_int, ctypes.c_void_p),
    )
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with (
        mmap.mmap(-1, _TRIAL_BYTES, flags=flags) as memory,
        mmap.mmap(-1, _TRIAL_BYTES + 2 * REGION, flags=flags, prot=mmap.PROT_READ) as other,
    ):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        array, hole = np.frombuffer(memory, np.uint8), np.frombuffer(other, np.uint8)
        array[:: mmap.PAGESIZE] = 1
        home = int(array.ctypes.data)
        away = int(hole.ctypes.data)
        away += (home + mmap.PAGESIZE - away) % REGION
        begun = time.monotonic()
        for source, to in ((home, away), (away, home)):
            if libc.mremap(source, _TRIAL_BYTES, _TRIAL_BYTES, 3, to) != to:
                raise RedirtyError("mremap of our own memory was refused")
        took = time.monotonic() - begun
        del array, hole
    return took / (_TRIAL_BYTES // REGION)
