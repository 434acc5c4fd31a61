"""The BPF side as one object: loaded and attached programs, targets, logs, counters.

Everything attached is bound to descriptors of this process: when it dies, however it dies, the kernel
removes all of it.
"""

from __future__ import annotations

import mmap
import os
import time

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, fault_log, hooks, syscalls
from redirty.collector.bpf.arm_log import ArmLog, ArmWrites
from redirty.collector.bpf.counters import Counters, StackCounts
from redirty.collector.bpf.epoch_logs import EpochLogs
from redirty.collector.bpf.loader import Options, load
from redirty.collector.bpf.ringbuf import Ring
from redirty.collector.bpf.target_map import RangeFilter, TargetMap
from redirty.collector.pageset import PageSet


class Tracer:
    """A loaded and attached write-fault log: the façade over the BPF maps.

    Attributes:
        options: How it was loaded.
        probe: The kind of probe that faults are logged by, one of probe_support.PROBES.
        refused: Probes that were tried before it, with the reason.
        hooks: Names of the hooks that are attached (hooks.py).
        byte_maps: This kernel's BPF has no atomic OR, nor an addition that returns the sum. When two
            processors fault on a page at the same moment, the counters may count it twice; the set
            of pages does not.
        ring: Single events, with Options.events.
    """

    def __init__(self, options: Options) -> None:
        loaded = load(options)
        self.options = options
        self.probe = loaded.probe
        self.refused = loaded.refused
        self.hooks = loaded.hooks
        self.byte_maps = loaded.byte_maps
        self._bpf = loaded.bpf
        self._config_map = mmap.mmap(self._fd("config"), fault_log.whole_pages(abi.CONFIG.itemsize))
        self._config = np.frombuffer(self._config_map, abi.CONFIG, 1)
        self._targets = TargetMap(
            self._fd("targets"), options.targets, self._config, cached=not self.byte_maps
        )
        self._ranges = RangeFilter(self._config)
        self._logs = EpochLogs(
            self._open_logs(),
            self._config,
            grace_fd=self._fd("grace"),
            grace_inner_fd=self._fd("grace_inner"),
            mprotected_fd=self._fd("opened") if "opened" in self.hooks else None,
        )
        self._counters = Counters(self._fd("stats"), options.slots, arm_log=not self.byte_maps)
        self._arm_log = None if self.byte_maps else ArmLog(self._fd("arm_writes"), self._config)
        self._stacks = (
            StackCounts(self._fd("stack_pages"), self._fd("stacks")) if options.stacks else None
        )
        self.ring = Ring(self._fd("events"), options.ring_bytes) if options.events else None
        self._log_programs = hooks.log_programs(self._bpf)
        self._skipped = self.skipped()
        self._config["arm_pid"] = os.getpid()
        self._config["follow_fork"] = int(options.follow_fork)

    def _fd(self, table: str) -> int:
        fd: int = self._bpf[table.encode()].map_fd
        return fd

    def _open_logs(self) -> tuple[fault_log.Log, fault_log.Log]:
        if self.byte_maps:
            return fault_log.MapLog(self._fd("bits0")), fault_log.MapLog(self._fd("bits1"))
        used = self._config["used"][0]
        return fault_log.tables(self._fd("rows"), self._fd("taken"), self.options.regions, used)

    # ---- targets ----

    def set_target(self, tgid: int, space: int, slot: int) -> None:
        """Trace a process from now on, or give it another slot.

        Raises:
            RedirtyError: There is no room for one more.
        """
        self._counters.use(slot)
        self._targets.set(tgid, space, slot)

    def drop_target(self, tgid: int) -> None:
        """Stop tracing a process."""
        self._targets.drop(tgid)

    def target_space(self, tgid: int) -> int | None:
        """Return the address space by which the kernel side knows a process; None: not a target."""
        return self._targets.space_of(tgid)

    def targets(self) -> dict[int, tuple[int, int]]:
        """Return all processes traced now, forked ones included: tgid -> (space, slot)."""
        return self._targets.all()

    def add_ranges(self, ranges: list[tuple[int, int]]) -> None:
        """Add address ranges, [start, end), to those whose writes are recorded; with Options.part.

        Raises:
            RedirtyError: There are too many.
        """
        self._ranges.add(ranges)

    # ---- epochs ----

    @property
    def epoch(self) -> int:
        """0 or 1: the set of maps that faults go to now."""
        return self._logs.epoch

    def flip(self) -> int:
        """Direct faults to the other set of maps from now on; return CLOCK_MONOTONIC in ns."""
        epoch = 1 - self.epoch
        now = time.monotonic_ns()
        self._counters.start(epoch, now)
        self._logs.switch(epoch)
        return now

    def arming(self, slot: int) -> None:
        """Attribute TLB flushes of a slot's target to its arming until armed()."""
        self._config["arming"] = slot + 1

    def armed(self, slot: int) -> None:
        """Note that the target of a slot was armed just now: its write curve starts here."""
        self._config["arming"] = 0
        self._counters.restart(slot, self.epoch)

    def wait_grace(self) -> None:
        """Wait until no BPF program is running that started before this call."""
        self._logs.wait_grace()

    def drain(self) -> dict[int, PageSet]:
        """Drain the log of the previous epoch into address space -> pages. Call it after wait_grace()."""
        return self._logs.drain()

    def drain_mprotected(self) -> dict[int, PageSet]:
        """Take the pages that mprotect made writable without a fault in the previous epoch.

        Only some kernels do that. Call it after wait_grace().

        Returns:
            Address space -> pages.
        """
        return self._logs.drain_mprotected()

    def peek(self, space: int, regions: npt.NDArray[np.uint64]) -> PageSet:
        """Return the pages of some regions of an address space logged so far in this epoch."""
        return self._logs.peek(space, regions)

    def logged(self) -> int | None:
        """Return about how many pages were logged in this epoch; None if counting takes long."""
        return self._logs.logged()

    # ---- counters ----

    def skipped(self) -> int:
        """Return how many runs of logging programs the kernel skipped since they were loaded.

        The count is over all processes. Where the kernel may preempt a BPF program (PREEMPT_LAZY,
        preempt=full), a fault on that processor meanwhile is not logged. See
        syscalls.recursion_misses for what the kernel does not count.
        """
        return sum(map(syscalls.recursion_misses, self._log_programs))

    def take_stats(self) -> npt.NDArray[np.void]:
        """Take the counters of the previous epoch and set them to 0. Call it after wait_grace().

        Returns:
            (slots used so far,) abi.STATS; `lost` of slot 0 includes the faults that were skipped.
        """
        taken = self._counters.take(1 - self.epoch)
        before, self._skipped = self._skipped, self.skipped()
        taken["lost"][0] += self._skipped - before
        # a sum that the kernel side need not keep
        if self.probe == "tracepoint":
            kinds = taken["kinds"]
            kinds[:, abi.WRITE_FAULTS] = kinds[:, abi.FIRST_TOUCH] + kinds[:, abi.WRITE_PROTECT]
        return taken

    def take_arm_writes(self) -> ArmWrites | None:
        """Take the writes around the previous epoch's arm. Call it after wait_grace().

        Returns:
            The writes of targets that have a slot; None: this kernel's BPF cannot log them.
        """
        return None if self._arm_log is None else self._arm_log.take(1 - self.epoch)

    def tlb_counts(self, slot: int) -> npt.NDArray[np.void]:
        """Return the (TLB_REASONS,) flushes of a slot's target so far in this epoch."""
        return self._counters.tlb(slot, self.epoch)

    # ---- stacks ----

    def take_stacks(self) -> list[tuple[int, int, int]]:
        """Take the counts of pages by stack: (address space, stack ID, pages); with Options.stacks."""
        assert self._stacks is not None
        return self._stacks.take()

    def stack(self, stack_id: int) -> list[int]:
        """Return the addresses of a stack, the writing instruction first; with Options.stacks."""
        assert self._stacks is not None
        return self._stacks.addresses(stack_id)

    def close(self) -> None:
        """Detach everything and free the maps."""
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        self._counters.close()
        if self._arm_log is not None:
            self._arm_log.close()
        del self._targets, self._ranges, self._logs, self._config  # they refer to the mapping
        self._config_map.close()
        self._bpf.cleanup()
