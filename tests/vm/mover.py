"""Page-table moves of programs in a test VM with NUMA nodes, as `redirty pagetables` makes them."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import functools
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redirty.collector.cli import main
from redirty.collector.linux import numa as host_nodes
from redirty.collector.linux.smaps import SmapsMapping, detailed
from redirty.collector.pagetables.planner import HUGE
from redirty.collector.pagetables.relocation import (
    Relocation,
    RelocationLimits,
    RelocationResult,
    RelocationTarget,
)
from redirty.collector.pagetables.walker import Walker, leaves_by_node

from tests.support.target_state import tracer_of
from tests.support.waiting import wait_until

MAX_PAUSE_S = 0.5  # emulated: ten times and more what it is otherwise
ON_NODE_0 = ("taskset", "-c", "0")
BARE, FAR = 1, 2  # nodes: one without memory, one with nothing but memory (see test_pagetables.py)
_SET_CHILD_SUBREAPER = 36
_STOP_S = 0.05  # about as long as a stop


@functools.cache
def _loaded() -> Walker:
    return Walker(host_nodes.read_nodes().highest)


def the_walker(highest: int = 0) -> Walker:
    """Return the walker shared by all, which is never closed: loading it takes ten seconds here."""
    walker = _loaded()
    walker.close = lambda: None  # type: ignore[method-assign]
    return walker


def layout(pid: int) -> list[SmapsMapping]:
    """Return the mappings except those that grow by themselves, without the mark that mremap leaves (sd), and
    with adjacent equal ones merged: kernels may join some when they come home.
    """
    found: list[SmapsMapping] = []
    for mapping in detailed(pid):
        m = mapping._replace(flags=mapping.flags - {"sd"})
        if found and found[-1]._replace(start=m.start, end=m.end) == m and found[-1].end == m.start:
            found[-1] = found[-1]._replace(end=m.end)
        elif m.path != "[heap]":
            found.append(m)
    return found


def changes(before: list[SmapsMapping], pid: int) -> list[str]:
    """Return how a layout has changed."""
    now = layout(pid)
    gone = [f"- {m}" for m in before if m not in now]
    return gone + [f"+ {m}" for m in now if m not in before]


class Mover:
    """Moves a process's tables in this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.nodes = host_nodes.read_nodes()
        self.walker = the_walker()

    def by_node(self) -> dict[int, int]:
        """Return the number of last-level tables by node."""
        return leaves_by_node(self.walker.walk(self.pid), self.nodes)

    def to(self, node: int) -> RelocationResult:
        """Move them to a node."""
        target = RelocationTarget(self.pid, self.walker, self.nodes)
        return Relocation(target, node, RelocationLimits(MAX_PAUSE_S)).run()


def there_and_back(pid: int, times: int) -> dict[str, Any]:
    """Move to the far node and back, `times` times; return what stayed and what it took."""
    mover = Mover(pid)
    left: list[int] = []
    kept: list[int] = []
    longest, stopped, took, moved = 0.0, 0.0, 0.0, 0
    reasons = Counter[str]()
    before = mover.by_node()
    for turn in range(2 * times):
        node = 0 if turn % 2 else FAR
        result = mover.to(node)
        left.append(sum(count for n, count in result.after.items() if n != node))
        longest, stopped = max(longest, result.longest_s), stopped + result.stopped_s
        moved, took = moved + result.moved, took + result.took_s
        kept.append(sum(result.kept.values()) - result.kept[HUGE])
        reasons |= result.kept
    return {
        "before": before,
        "after": mover.by_node(),
        "left": left,
        "kept": kept,
        "reasons": dict(reasons),
        "moved": moved,
        "longest_s": longest,
        "stopped_s": stopped,
        "took_s": took,
    }


def _others(keep: int) -> Iterator[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return (pid for pid in map(int, text.split()) if pid != keep)


def killed(
    mover: Mover, count: int, rng: random.Random, check: Callable[[], object]
) -> tuple[int, list[str]]:
    """Kill, by SIGKILL, `count` processes that move tables to and fro: at random moments, and in turn while
    they hold the target. check: called when everything that a killed one had started has ended.

    Returns: how often the target was held at that moment, and what stopped a mover before.
    """
    # Orphans of a killed mover become children of this process, which reaps them.
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    started = time.monotonic()
    mover.to(FAR)
    mover.to(0)
    span_s = time.monotonic() - started
    held, trouble = 0, []
    for turn in range(count):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    mover.to(FAR)
                    mover.to(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0, span_s))
        if turn % 2:  # the target is stopped for only a tenth of the time
            wait_until(lambda: tracer_of(mover.pid), "held")
            time.sleep(rng.uniform(0, _STOP_S))
        held += tracer_of(mover.pid) != 0
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            trouble.append("a mover ended by itself")
        while others := list(_others(mover.pid)):
            for pid in others:
                os.waitpid(pid, 0)
        check()
    return held, trouble


@contextlib.contextmanager
def no_balancing() -> Iterator[None]:
    """Switch the kernel's NUMA balancing off, which changes entries: it makes whole ranges inaccessible, to
    see who touches them.
    """
    switch = Path("/proc/sys/kernel/numa_balancing")
    before = switch.read_text()
    switch.write_text("0")
    try:
        yield
    finally:
        switch.write_text(before)


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; pandas takes long to import here."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def forked(words: list[str], stderr: Path) -> Iterator[int]:
    """Run redirty in a forked process, which need not import all of it again; wait for its end."""
    child = os.fork()
    if child == 0:
        with stderr.open("wb") as file:
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            code = main.main(words)
        finally:
            os._exit(code)
    try:
        yield child
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.waitpid(child, 0)
