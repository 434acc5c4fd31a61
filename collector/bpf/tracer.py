"""The BPF side as one object: load, attach, targets, epochs, drained bitmaps, counters, detach.

Everything attached hangs on descriptors
of this process: when it dies, however it dies, the kernel takes all of it away.
"""

from __future__ import annotations

import mmap
import os
import time
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, fault_log, hooks, syscalls
from redirty.collector.bpf.loader import Options, load
from redirty.collector.bpf.ringbuf import Ring
from redirty.collector.bpf.symbols import Symbols
from redirty.collector.errors import RedirtyError, why
from redirty.collector.pageset import PAGE_SHIFT, PageSet, empty, from_ranges, from_rows

_OUR_CHANGES = 1 << 62  # the kernel side counts its own from 1


class Tracer:
    """A loaded and attached write-fault log.

    byte_maps: this kernel's BPF has no atomic OR, nor an addition that tells the sum; when two
    processors fault on one page at the same moment, the counters may count it twice. The set
    of pages does not.
    """

    def __init__(self, options: Options) -> None:
        loaded = load(options)
        self.options = options
        self.probe = loaded.probe
        self.refused = loaded.refused
        self.attached = loaded.attached
        self.byte_maps = loaded.byte_maps
        self._bpf = loaded.bpf
        self._open_maps()

    def _open_maps(self) -> None:
        o = self.options
        size = abi.CONFIG.itemsize
        self._config_map = mmap.mmap(self._fd("config"), fault_log.whole_pages(size))
        self._config = np.frombuffer(self._config_map, abi.CONFIG, 1)
        self._stats_map = mmap.mmap(
            self._fd("stats"), fault_log.whole_pages(abi.STATS.itemsize * o.slots * 2)
        )
        self._stats = np.frombuffer(self._stats_map, abi.STATS, o.slots * 2).reshape(o.slots, 2)
        self._slots_used = 1  # slot 0 is everybody's
        self._changes = 0
        self._known_targets: tuple[int, int, dict[int, tuple[int, int]]] | None = None
        self._logs: tuple[fault_log.Log, fault_log.Log]
        if self.byte_maps:
            self._logs = (fault_log.MapLog(self._fd("bits0")), fault_log.MapLog(self._fd("bits1")))
        else:
            used = self._config["used"][0]
            self._logs = fault_log.tables(self._fd("rows"), self._fd("taken"), o.regions, used)
        self._targets_fd = self._fd("targets")
        self._targets_reader = syscalls.HashReader(
            self._targets_fd, np.empty(o.targets, np.uint32), np.empty(o.targets, abi.TARGET)
        )
        self._grace_fd = self._fd("grace")
        self._grace_inner = np.array([self._fd("grace_inner")], np.uint32)
        self._opened = None
        if "opened" in self.attached:
            self._opened = syscalls.HashReader(
                *(self._fd("opened"), np.empty(abi.RANGES, abi.RANGE)),
                np.empty(abi.RANGES, np.uint64),
            )
        self.ring = Ring(self._fd("events"), o.ring_bytes) if o.events else None
        self._log_programs = hooks.log_programs(self._bpf)
        self._skipped = self.skipped()
        self._config["arm_pid"] = os.getpid()
        self._config["follow_fork"] = int(o.follow_fork)
        self._stats["ref_ns"] = time.monotonic_ns()

    def _fd(self, table: str) -> int:
        fd: int = self._bpf[table.encode()].map_fd
        return fd

    # ---- targets ----

    def set_target(self, tgid: int, space: int, slot: int) -> None:
        """Traces a process from now on, or gives it another slot.

        Errors: RedirtyError when there is no room for one more.
        """
        if slot >= self._slots_used:
            self._stats["ref_ns"][self._slots_used : slot + 1] = self._stats["ref_ns"][0]
            self._slots_used = slot + 1
        self._changed(tgid)  # before the entry, or a fault in between would be passed by
        value = np.array([(space, slot)], abi.TARGET)
        try:
            syscalls.map_update(self._targets_fd, np.array([tgid], np.uint32), value)
        except OSError as e:
            raise RedirtyError(
                f"cannot trace more than {self.options.targets} processes: {why(e)}"
            ) from None
        self._changed(tgid)  # after it, or the kernel side's copy of the old one would stay

    def drop_target(self, tgid: int) -> None:
        """Stops tracing a process."""
        syscalls.map_delete(self._targets_fd, np.array([tgid], np.uint32))
        self._changed(tgid)

    def _changed(self, tgid: int) -> None:
        """The kernel side must look this process up again (events.h: rd_config.near)."""
        self._changes += 1
        self._config["near"][0, tgid % abi.NEAR] = _OUR_CHANGES | self._changes

    def target_space(self, tgid: int) -> int | None:
        """The address space the kernel side knows a process by; None when it is no target."""
        value = np.zeros(1, abi.TARGET)
        found = syscalls.map_lookup(self._targets_fd, np.array([tgid], np.uint32), value)
        return int(value["space"][0]) if found else None

    def targets(self) -> dict[int, tuple[int, int]]:
        """All processes traced now, those that forked included: tgid -> (space, slot)."""
        # Reading all of the map takes 100 us, while a target may stand still; who changes it counts up afterwards.
        changes = int(self._config["changes"][0])
        known = self._known_targets
        if known is None or known[:2] != (changes, self._changes) or self.byte_maps:
            tgids, values = self._targets_reader.read()
            rows = zip(tgids.tolist(), values.tolist(), strict=True)
            found = {tgid: (space, slot) for tgid, (space, slot) in rows}
            known = self._known_targets = changes, self._changes, found
        return known[2].copy()

    def choose(self, ranges: list[tuple[int, int]]) -> None:
        """With Options.part: from now on writes to these addresses, [start, end), are recorded, too.

        Errors: RedirtyError when there are too many.
        """
        count = int(self._config["chosen_count"][0])
        known = {tuple(row) for row in self._config["chosen"][0][:count].tolist()}
        for bounds in ranges:
            if bounds in known:
                continue
            if count == abi.CHOSEN:
                raise RedirtyError(
                    f"more than {abi.CHOSEN} pieces of memory can't be told apart from the rest: "
                    "trace the whole process (-p)"
                )
            self._config["chosen"][0][count] = bounds
            count += 1
            self._config["chosen_count"] = count  # after what it counts

    # ---- epochs ----

    @property
    def epoch(self) -> int:
        """0 or 1: the set of maps that faults go to now."""
        return int(self._config["epoch"][0]) & 1

    def flip(self) -> int:
        """Faults go to the other set of maps from now on. Returns CLOCK_MONOTONIC in ns."""
        new = 1 - self.epoch
        now = time.monotonic_ns()
        self._stats["ref_ns"][: self._slots_used, new] = now
        self._config["epoch"] = new
        return now

    def arming(self, slot: int) -> None:
        """The target of a slot is armed from now on until armed(): TLB flushes are the arm's."""
        self._config["arming"] = slot + 1

    def armed(self, slot: int) -> None:
        """The target of a slot was armed just now: its write curve begins here."""
        self._config["arming"] = 0
        self._stats["ref_ns"][slot, self.epoch] = time.monotonic_ns()

    def wait_grace(self) -> None:
        """Returns when no BPF program is running that began before this call.

        Changing a map of maps waits for that in the kernel (synchronize_rcu in
        kernel/bpf/syscall.c, since 4.20, made for this use). Sleeps, costs no CPU.
        """
        syscalls.map_update(self._grace_fd, np.zeros(1, np.uint32), self._grace_inner)

    def drain(self) -> dict[int, PageSet]:
        """Empties the maps of the epoch before: address space -> pages. Call after wait_grace."""
        keys, words = self._logs[1 - self.epoch].drain()
        order = np.argsort(keys)
        keys, words = keys[order], words[order]
        spaces = keys >> np.uint64(abi.REGION_BITS)
        regions = keys & np.uint64((1 << abi.REGION_BITS) - 1)
        cuts = np.flatnonzero(spaces[1:] != spaces[:-1]) + 1
        bounds = [0, *cuts.tolist(), len(keys)]
        return {
            int(spaces[a]): PageSet(regions[a:b], words[a:b]) for a, b in pairwise(bounds) if b > a
        }

    def opened(self) -> dict[int, PageSet]:
        """Pages that mprotect opened to writes unseen in the epoch before, on kernels that do so:
        address space -> pages. Empties what it returns. Call after wait_grace."""
        if self._opened is None:
            return {}
        keys, ends = self._opened.read()
        found: dict[int, PageSet] = {}
        for key, end in zip(keys, ends.tolist(), strict=True):
            if key["epoch"] == 1 - self.epoch:
                bounds = np.array([key["start"], end], np.uint64) >> np.uint64(PAGE_SHIFT)
                space = int(key["space"])
                found[space] = found.get(space, empty()) | from_ranges(bounds[:1], bounds[1:])
                syscalls.map_delete(self._opened.fd, np.array([key], abi.RANGE))
        return found

    def peek(self, space: int, regions: npt.NDArray[np.uint64]) -> PageSet:
        """Pages of some regions of an address space logged so far in the epoch that runs."""
        base = np.uint64(space << abi.REGION_BITS)
        keys, words = self._logs[self.epoch].find(regions | base)
        return from_rows(keys & np.uint64((1 << abi.REGION_BITS) - 1), words)

    def logged(self) -> int | None:
        """How many pages were logged since the flip, or so; None where that is not known cheaply."""
        return self._logs[self.epoch].count()

    def skipped(self) -> int:
        """Since the start, runs of programs that log writes that the kernel left out, of any
        process. Where it may preempt a BPF program (PREEMPT_LAZY, preempt=full), a fault on that
        processor meanwhile is not logged. See kernel.recursion_misses for what it does not count."""
        return sum(map(syscalls.recursion_misses, self._log_programs))

    def take_stats(self) -> npt.NDArray[np.void]:
        """(slots used so far,) counters of the epoch before, then set to 0; in slot 0's `lost` the faults
        that were skipped, too. Call after wait_grace."""
        # as words: numpy copies records field by field
        words = self._stats.view(np.uint64).reshape(len(self._stats), 2, -1)
        old = words[: self._slots_used, 1 - self.epoch]
        taken: npt.NDArray[np.void] = old.copy().view(abi.STATS).reshape(-1)
        old[...] = 0
        before, self._skipped = self._skipped, self.skipped()
        taken["lost"][0] += self._skipped - before
        # a sum that the kernel side need not keep
        if self.probe == "tracepoint":
            kinds = taken["kinds"]
            kinds[:, abi.WRITE_FAULTS] = kinds[:, abi.FIRST_TOUCH] + kinds[:, abi.WRITE_PROTECT]
        return taken

    def tlb_counts(self, slot: int) -> npt.NDArray[np.void]:
        """(TLB_REASONS,) flushes of a slot's target so far in the epoch that runs."""
        counts: npt.NDArray[np.void] = self._stats["tlb"][slot, self.epoch].copy()
        return counts

    # ---- stacks ----

    def take_stacks(self) -> list[tuple[int, int, int]]:
        """Empties the count of pages by stack: (address space, stack, pages) each."""
        fd = self._fd("stack_pages")
        reader = syscalls.HashReader(fd, np.empty(8192, abi.STACK_KEY), np.empty(8192, np.uint64))
        keys, values = reader.drain()
        return [
            (space, stack, n)
            for (space, stack), n in zip(keys.tolist(), values.tolist(), strict=True)
        ]

    def symbols(self) -> Symbols:
        """Names for addresses in targets."""
        return Symbols(self._bpf)

    def stack(self, stack_id: int) -> list[int]:
        """Addresses of a stack, the writing instruction first."""
        addresses = np.zeros(127, np.uint64)
        if not syscalls.map_lookup(self._fd("stacks"), np.array([stack_id], np.uint32), addresses):
            return []
        return [int(a) for a in addresses[addresses != 0]]

    def close(self) -> None:
        """Detaches everything and frees the maps."""
        if self.ring is not None:
            self.ring.close()
            self.ring = None
        del self._config, self._stats, self._logs
        self._config_map.close()
        self._stats_map.close()
        self._bpf.cleanup()
