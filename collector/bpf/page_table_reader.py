"""Reads page tables by BPF: the address of a process's top page table, and the contents of tables.

Nothing is attached: the kernel runs the programs on request. x86-64 only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import redirty.bpfprogs as programs
from redirty.collector.bpf import btf, syscalls
from redirty.collector.bpf.loader import compile_programs
from redirty.collector.errors import RedirtyError, why
from redirty.collector.linux import procfs
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64

ENTRIES = 512
_BATCH = 32  # tables.bpf.c: RD_TABLES
_WANTED = np.dtype([("address", "<u8"), ("error", "<i8")])
# KASLR places the map of all memory at a multiple of what one entry of a third-level table maps.
_BASE_STEP = 1 << 30
_COOKIE_BYTES = 64


class PageTableReadError(RedirtyError):
    """Page tables cannot be read on this kernel. The message is the reason, a phrase."""


class PageTableReader:
    """A loaded reader of page tables.

    Raises:
        PageTableReadError: This kernel does not allow reading them.
    """

    def __init__(self, highest: int) -> None:
        """Load the reader; highest: upper bound of physical addresses (a wrong one is never read)."""
        if platform.machine() != "x86_64":
            raise PageTableReadError(f"page tables of {platform.machine()} are not supported yet")
        self._base = 0
        # The address bits of an entry above all memory are flags (such as those of memory encryption).
        self._address_mask = np.uint64(((1 << highest.bit_length()) - 1) & ~0xFFF)
        try:
            flags = [f"-DRD_TABLES={_BATCH}", *btf.table_offset_flags(btf.load())]
            self._bpf = compile_programs(programs.tables_source(), flags)
            self._programs = [
                self._bpf.load_func(name, self._bpf.RAW_TRACEPOINT).fd
                for name in (b"tables_top", b"tables_read")
            ]
        except RedirtyError as e:
            raise PageTableReadError(str(e)) from None
        except Exception as e:
            raise PageTableReadError(
                f"the kernel refused the program that reads them: {e}"
            ) from None
        wanted, tables = (self._bpf[name].map_fd for name in (b"wanted", b"tables"))
        self._wanted_map = mmap.mmap(wanted, PAGE_SIZE)
        self._tables_map = mmap.mmap(tables, _BATCH * PAGE_SIZE)
        self._wanted = np.frombuffer(self._wanted_map, _WANTED, _BATCH)
        self._tables = np.frombuffer(self._tables_map, np.uint64).reshape(_BATCH, ENTRIES)
        try:
            self._base = self._find_base(highest)
        except OSError as e:
            self.close()
            raise PageTableReadError(
                f"the kernel does not run programs on demand: {why(e)}"
            ) from None
        except BaseException:
            self.close()
            raise

    def top(self, pid: int | str) -> int:
        """Return the physical address of a process's top page table.

        Raises:
            OSError: The process is gone, or may not be examined.
        """
        directory = f"/proc/{pid}" if isinstance(pid, str) else procfs.directory(pid)
        with open(f"{directory}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            return self._top_virtual(memory.fileno()) - self._base

    def _top_virtual(self, descriptor: int) -> int:
        syscalls.run_raw_tracepoint(self._programs[0], descriptor)
        return int(self._wanted["address"][0])

    def read(self, physical: U64) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Read the pages at (n,) physical addresses: (n, 512) words, and (n,) which could be read."""
        words = np.zeros((len(physical), ENTRIES), np.uint64)
        good = np.zeros(len(physical), np.bool_)
        for at in range(0, len(physical), _BATCH):
            batch = physical[at : at + _BATCH] + np.uint64(self._base)
            n = len(batch)
            self._wanted["address"][:n] = batch
            self._wanted["address"][n:] = 0
            self._wanted["error"][:n] = -1
            syscalls.run_raw_tracepoint(self._programs[1])
            words[at : at + n] = self._tables[:n]
            good[at : at + n] = self._wanted["error"][:n] == 0
        return words, good

    def addresses(self, entries: U64) -> U64:
        """Extract the physical addresses from page-table entries."""
        return entries & self._address_mask

    def _find_base(self, highest: int) -> int:
        """Find the kernel's direct map of all memory.

        It starts below the top table of this process, which is in it, at one of few addresses; from
        the right one a known page of this process is found with its contents.
        """
        with open("/proc/self/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            top = self._top_virtual(memory.fileno())
        with known_page() as (_, frame, content):
            first = top & ~(_BASE_STEP - 1)
            steps = np.arange(0, highest + _BASE_STEP, _BASE_STEP, dtype=np.uint64)
            bases = np.uint64(first) - steps
            for at in range(0, len(bases), _BATCH):
                batch = bases[at : at + _BATCH]
                words, good = self.read(batch + np.uint64(frame << PAGE_SHIFT))
                right = good & (words[:, : len(content)] == content).all(axis=1)
                if right.any():
                    return int(batch[right][0])
        raise PageTableReadError(
            "cannot find a known page in the kernel's direct map of memory (lockdown hides it, or the "
            "layout of memory is not supported)"
        )

    def close(self) -> None:
        """Unload the programs."""
        del self._wanted, self._tables
        self._wanted_map.close()
        self._tables_map.close()
        self._bpf.cleanup()


@contextlib.contextmanager
def known_page() -> Iterator[tuple[int, int, U64]]:
    """Yield a page of this process: its address, its frame number, its first words.

    The page stays in place inside the context.

    Raises:
        PageTableReadError: The kernel hides frame numbers.
    """
    with mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[:_COOKIE_BYTES] = os.urandom(_COOKIE_BYTES)
        array = np.frombuffer(page, np.uint64)
        address = int(array.ctypes.data)
        content = array[: _COOKIE_BYTES // 8].copy()
        del array
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
            entry = os.pread(pagemap.fileno(), 8, (address >> PAGE_SHIFT) * 8)
        frame = int.from_bytes(entry, "little") & ((1 << 55) - 1)
        if not frame:
            raise PageTableReadError(
                "the kernel hides page frames (reading them needs CAP_SYS_ADMIN)"
            )
        yield address, frame, content
