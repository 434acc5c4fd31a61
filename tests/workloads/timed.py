"""Drivers of the programs that are measured, or measured against: sweep, scanfloor, writer, flusher."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.procfs import status_kib

from tests.support.waiting import wait_until

from .pages import areas_of
from .process import Answer, Program, ProgramWithFiles


@dataclass(frozen=True)
class SweepTime:
    """The time that touching `pages` pages took."""

    pages: int
    ns: int
    ns_per_page: float

    @classmethod
    def from_json(cls, answer: Answer) -> Self:
        """Build it from an answer."""
        return cls(answer["pages"], answer["ns"], answer["ns_per_page"])


class Sweep(ProgramWithFiles):
    """Writes prepared memory page by page, and times it. kind: anon, thp, memfd or file."""

    def __init__(
        self,
        mib: int = 512,
        kind: str = "anon",
        threads: int = 1,
        directory: Path | str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        self._start("sweep", [mib, kind, threads, self.directory], wrapper)
        self.area = areas_of(self.greeting)["sweep"]

    def sweep(self, stride: int = 1, first: int = 0, count: int = 0, threads: int = 1) -> SweepTime:
        """Rewrite one word in every stride-th page, from page `first` on; 0 for all pages."""
        answer = self.command(
            "sweep", f"stride={stride}", f"first={first}", f"count={count}", f"threads={threads}"
        )
        return SweepTime.from_json(answer)

    def touch(self, mib: int = 64, thp: bool = False) -> SweepTime:
        """Map fresh memory and touch it: the cost of a first fault."""
        return SweepTime.from_json(self.command("touch", f"mib={mib}", f"thp={int(thp)}"))

    def filetouch(self, path: Path | str) -> SweepTime:
        """Map a file and read a byte of each page, in random order. The path must not contain spaces."""
        return SweepTime.from_json(self.command("filetouch", path))

    def flood(self, seconds: int, threads: int = 1, mib: int = 2) -> Answer:
        """Map, touch and unmap at full speed; answers pages, faults, ns, faults_per_s."""
        return self.command("flood", seconds, threads, f"mib={mib}")


@dataclass(frozen=True)
class Scan:
    """A scan, or the medians of several. regions, pages and calls are sums over all rounds.

    ns is wall-clock time, cpu_ns processor time.
    """

    ns: int
    cpu_ns: int
    regions: int
    pages: int
    calls: int
    rounds: int
    ns_min: int
    ns_max: int


class ScanFloor(Program):
    """Scans and write-protects a process as fast as C can: the floor for benchmarks."""

    def __init__(
        self, pid: int, rounds: int = 1, mode: str = "all", wrapper: Sequence[str] = ()
    ) -> None:
        """Start it. mode: all (categories), or written, which takes the kernel's fast path."""
        super().__init__("scanfloor", [pid, rounds, mode], wrapper=wrapper)

    def scan(self) -> Scan:
        """Scan `rounds` times."""
        answer = self.command("scan")
        answer.pop("ok")
        return Scan(**answer)


@dataclass(frozen=True)
class WriteRun:
    """A run of the known-rate writer; times are CLOCK_MONOTONIC, latest_ns its latest wake-up.

    moments: with a log, (µs since start_ns, writes made until then) at both ends of each batch.
    """

    writes: int
    distinct: int
    start_ns: int
    end_ns: int
    latest_ns: int
    moments: tuple[int, ...] = ()

    def writes_at(self, ns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return how many writes had been made at some times of CLOCK_MONOTONIC, at whatever pace."""
        pairs = np.array(self.moments, np.float64).reshape(-1, 2)
        found: npt.NDArray[np.float64] = np.interp(
            (ns - self.start_ns) / 1000, pairs[:, 0], pairs[:, 1]
        )
        return found


FOR_EVER_S = 1_000_000


class Writer(Program):
    """Writes `rate` pages a second over `pages` pages; pattern: one of PATTERNS."""

    def __init__(self, mib: int = 64, wrapper: Sequence[str] = ()) -> None:
        self._runs = False
        super().__init__("writer", [mib], wrapper=wrapper)
        self.area = areas_of(self.greeting)["writer"]

    def start(
        self,
        pattern: str,
        rate: int,
        pages: int,
        seconds: int = FOR_EVER_S,
        seed: int = 1,
        log: bool = False,
    ) -> None:
        """Start a run and return at once; finish() waits for it, and the end of the `with` block kills it.

        log: keep one, see WriteRun.
        """
        self.send("run", pattern, rate, pages, seconds, seed, int(log))
        self._runs = True

    def wait_until_it_writes(self, rate: int, seconds: int) -> None:
        """Wait until the log of a run that was started is there: its pages are none of those that the run writes."""
        room = 2 * seconds * 1000 + seconds * rate // 64
        expected_kib = (self.area.end - self.area.start) // 1024 + room * 8 // 1024
        wait_until(lambda: status_kib(self.pid, "VmRSS") >= expected_kib, "the writer writes")

    def finish(self) -> WriteRun:
        """Wait for the end of the run."""
        answer = self.receive()
        self._runs = False
        answer.pop("ok")
        return WriteRun(**{**answer, "moments": tuple(answer.get("moments", ()))})

    def end(self) -> WriteRun:
        """End the run early."""
        self.signal(signal.SIGTERM)
        return self.finish()

    def close(self) -> None:
        """End the program, in the middle of a run if need be."""
        if self._runs:
            self.signal(signal.SIGKILL)
        super().close()

    def run(self, pattern: str, rate: int, pages: int, seconds: int, seed: int = 1) -> WriteRun:
        """Run from start to end."""
        self.start(pattern, rate, pages, seconds, seed)
        return self.finish()


@dataclass(frozen=True)
class Flushed:
    """The cost of a number of calls: TLB flushes, and pages flushed by all of them."""

    flushes: int
    pages: int


class Flusher(Program):
    """Flushes its TLB a known number of times, while `threads` threads spin on other processors.

    cpu: the processor from which it flushes.
    """

    def __init__(self, mib: int = 16, threads: int = 1, wrapper: Sequence[str] = ()) -> None:
        super().__init__("flusher", [mib, threads], wrapper=wrapper)
        self.area = areas_of(self.greeting)["flusher"]
        self.cpu: int = self.greeting["cpu"]

    def flush(self, how: str, count: int, pages: int) -> Flushed:
        """Flush by mprotect, dontneed or munmap; writes a new piece of `pages` pages before each call."""
        answer = self.command(how, count, pages)
        return Flushed(answer["flushes"], answer["pages"])

    def pageout(self, path: Path) -> None:
        """Map and read a file on a real file system, and have reclaim unmap its pages."""
        self.command("pageout", path)

    def touch(self) -> None:
        """Write some pages, so that an arm has something to protect."""
        self.command("touch")


PATTERNS = ("cyclic", "uniform", "hot_cold", "bursty", "zipf")
# The same as in pattern.h: a tenth of the pages gets nine tenths of the writes; bursts fill a quarter of each second.
_HOT_PAGES, _HOT_WRITES = 0.1, 0.9
_BURST_S = 0.25
_PHASES = 1000


def expected_distinct(pattern: str, rate: float, pages: int, seconds: float) -> float:
    """Return W(t) of the known-rate writer in closed form, in pages.

    Where chance is involved it is the expected value; for bursty, over all times at which t may start.
    """
    if pattern == "cyclic":
        return min(float(pages), rate * seconds)
    if pattern == "uniform":
        return _drawn(rate * seconds, pages)
    if pattern == "hot_cold":
        hot = int(pages * _HOT_PAGES)
        often = _drawn(rate * seconds * _HOT_WRITES, hot)
        return often + _drawn(rate * seconds * (1 - _HOT_WRITES), pages - hot)
    if pattern == "bursty":
        begin = np.arange(_PHASES) / _PHASES
        writes = _in_bursts(rate, begin + seconds) - _in_bursts(rate, begin)
        return float(np.minimum(writes, pages).mean())
    if pattern == "zipf":
        shares = np.diff(np.log(np.arange(1, pages + 2))) / np.log(pages + 1)
        return float(-np.expm1(rate * seconds * np.log1p(-shares)).sum())
    raise ValueError(f"no pattern {pattern}")


def _drawn(writes: float, pages: int) -> float:
    """Return the distinct pages among `writes` draws from `pages` with equal chances."""
    return float(pages * -np.expm1(writes * np.log1p(-1.0 / pages)))


def _in_bursts(rate: float, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the writes within the first seconds."""
    whole = np.floor(seconds)
    return rate * (whole + np.minimum((seconds - whole) / _BURST_S, 1.0))
