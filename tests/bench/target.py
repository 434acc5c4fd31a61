"""A process that is armed and traced from here, and the time it spends on a processor."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from redirty.collector.arming.methods import open_armed
from redirty.collector.arming.uffd import UffdArmed
from redirty.collector.bpf import hooks, syscalls
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.linux.maps import Mappings, MapsFile
from redirty.collector.pageset import PAGE_SHIFT, empty
from redirty.collector.ptrace.injector_client import Injector

from tests.support.closing import Closing
from tests.workloads.driver import Sweep

SLOT = 1


def cpus() -> tuple[int, int]:
    """Return the processors of the target and of its tracer: two different ones, if there are two."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


def pinned(cpu: int) -> tuple[str, ...]:
    """Return a command that starts a program on one processor."""
    return ("taskset", "-c", str(cpu))


def cpu_ns(pid: int) -> int:
    """Return the time that a process's threads have spent on a processor, in ns.

    Unlike wall-clock time it leaves out what other programs took meanwhile. The clock's number is what
    clock_getcpuclockid(3) makes of a PID, for which Python has no name.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def available_mib() -> int:
    """Return the memory that can be had without pushing anything out."""
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        lines = dict(line.split(":") for line in file)
    return int(lines["MemAvailable"].split()[0]) >> 10


class Probe(Closing):
    """A loaded tracer whose programs can be detached from the kernel and attached again in milliseconds."""

    def __init__(self, options: Options) -> None:
        self.tracer = Tracer(options)
        # The tracer has no use for being loaded and not attached; only this benchmark has.
        self._bpf: Any = self.tracer._bpf
        self._on = True

    def attach(self) -> None:
        """Attach the programs."""
        if not self._on:
            hooks.attach(self._bpf, self.tracer.probe)
            self._on = True

    def detach(self) -> None:
        """Detach the programs: the kernel runs none of redirty's any more."""
        bpf = self._bpf
        for name in list(bpf.raw_tracepoint_fds):
            bpf.detach_raw_tracepoint(name)
        for name in list(bpf.kprobe_fds):
            bpf.detach_kprobe_event(name)
        for name in list(bpf.kfunc_entry_fds):
            bpf.detach_kfunc(name)
        for name in list(bpf.kfunc_exit_fds):
            bpf.detach_kretfunc(name)
        self._on = False

    def empty(self) -> int:
        """Discard what was recorded; return how many events were lost, if there is a ring."""
        t = self.tracer
        lost = 0
        for _ in range(2):
            t.flip()
            t.wait_grace()
            t.drain()
            stats = t.take_stats()
            lost += int(stats["lost_events"].sum())
        if t.ring is not None:
            while len(t.ring.take()):
                pass
        return lost

    def close(self) -> None:
        """Unload the programs."""
        self.tracer.close()


class EmptyProgram:
    """The BPF program "return 0" on the tracepoint of faults: the least that any log of them by a tracepoint
    can cost.
    """

    def __init__(self) -> None:
        self._program = syscalls.load_noop(syscalls.TYPE_RAW_TRACEPOINT)
        self._link = -1

    def attach(self) -> None:
        """Attach it."""
        if self._link < 0:
            self._link = syscalls.open_raw_tracepoint(self._program, "page_fault_user")

    def detach(self) -> None:
        """Detach it."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def close(self) -> None:
        """Detach it and free it."""
        self.detach()
        os.close(self._program)


class Target:
    """A sweeping process that is armed through its userfaultfd."""

    def __init__(self, sweep: Sweep, injector: Injector) -> None:
        self.sweep = sweep
        armed = open_armed("uffd", sweep.pid, injector)
        assert isinstance(armed, UffdArmed)
        self.armed = armed
        self._maps = MapsFile(sweep.pid)
        self.mappings = self.read_state(0)
        self.armed.arm(self.mappings)

    def read_state(self, pages: int) -> Mappings:
        """Do what a round does just before it arms: read the list of mappings, and which of `pages` pages from the
        sweep's first on are present.
        """
        mappings = self._maps.read()
        assert mappings is not None, "the target has just answered"
        first = self.sweep.area.start >> PAGE_SHIFT
        self.armed.present(mappings, first, first + pages)
        return mappings

    def close(self) -> None:
        """Disarm it."""
        self.armed.close()
        self._maps.close()

    def first_writes(self) -> float:
        """Arm, then have every page written; return ns per page, of processor time."""
        self.armed.scan_and_protect(self.mappings, empty())
        return self.writes()

    def writes(self) -> float:
        """Have every page written in the current state; return ns per page, of processor time."""
        before = cpu_ns(self.sweep.pid)
        pages = self.sweep.sweep().pages
        return (cpu_ns(self.sweep.pid) - before) / pages


@contextlib.contextmanager
def armed_sweep(mib: int, cpu: int, kind: str = "anon", threads: int = 1) -> Iterator[Target]:
    """Start a target on one processor; it ends with the block."""
    injector = Injector()
    try:
        with Sweep(mib, kind, threads, wrapper=pinned(cpu)) as sweep:
            target = Target(sweep, injector)
            try:
                yield target
            finally:
                target.close()
    finally:
        injector.close()
