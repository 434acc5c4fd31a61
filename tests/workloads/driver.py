"""Drives the workload programs: each class is one program, each method one of its commands.

with Phases() as phases:
    truth = phases.write("anon", "random", seed=7, count=500, threads=2)
    truth.pages                 # exactly the page numbers written
    truth.threads[tid]          # by this thread
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from .initramfs import guest_parameters, make_initramfs
from .pages import PAGE_BYTES, Area, Pages, Touched, digest, expand, union
from .process import Answer, Program, WorkloadError, build

__all__ = [
    "DEFAULT_AREAS",
    "PAGE_BYTES",
    "Answer",
    "Area",
    "Checksum",
    "ChecksumResult",
    "Child",
    "Hold",
    "Pages",
    "Phases",
    "Program",
    "Scan",
    "ScanFloor",
    "Sweep",
    "SweepTime",
    "Touched",
    "WorkloadError",
    "WriteRun",
    "Writer",
    "build",
    "digest",
    "expand",
    "expected_distinct",
    "guest_parameters",
    "make_initramfs",
    "union",
]

DEFAULT_AREAS: Mapping[str, tuple[str, int]] = {
    "anon": ("anon_private", 8),
    "shared": ("anon_shared", 8),
    "memfd": ("memfd", 8),
    "private_file": ("file_private", 8),
    "shared_file": ("file_shared", 8),
}
"""name: (kind, MiB): every mapping class once."""


def _areas(answer: Mapping[str, Any]) -> dict[str, Area]:
    return {fields["name"]: Area.from_json(fields) for fields in answer.get("areas", [])}


class _InDirectory(Program):
    """A program with files: in `directory`, or in a temporary one on the file system of the system's default."""

    def __init__(self, directory: Path | str | None) -> None:
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="workload-") if directory is None else None
        )
        self.directory = Path(self._temporary.name if self._temporary else str(directory))

    def _start(self, name: str, arguments: Sequence[object], wrapper: Sequence[str]) -> None:
        Program.__init__(self, name, arguments, wrapper=wrapper)

    def close(self) -> None:
        super().close()
        if self._temporary:
            self._temporary.cleanup()


class Phases(_InDirectory):
    """Touches memory of every mapping class only when told. `areas` follows every remapping."""

    def __init__(
        self,
        areas: Mapping[str, tuple[str, int]] = DEFAULT_AREAS,
        threads: int = 2,
        directory: Path | str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        wanted = [f"{name}:{kind}:{mib}" for name, (kind, mib) in areas.items()]
        self._start("phases", [self.directory, threads, *wanted], wrapper)
        self.areas = _areas(self.greeting)
        self.tids: list[int] = self.greeting["tids"]

    def _touch(self, verb: str, area: str, *words: object) -> Touched:
        return Touched.from_json(self.areas[area], self.command(verb, area, *words))

    def write(
        self, area: str, pattern: str = "all", seed: int = 1, count: int = 0, threads: int = 1
    ) -> Touched:
        """Writes a new non-zero value to each page of the pattern: all, stride:N, range:FIRST, random or
        collide[:PATTERN]. A count of 0 means all that the pattern has."""
        return self._touch("write", area, pattern, seed, count, threads)

    def read(
        self, area: str, pattern: str = "all", seed: int = 1, count: int = 0, threads: int = 1
    ) -> Touched:
        """Reads a word of each page and writes nothing."""
        return self._touch("read", area, pattern, seed, count, threads)

    def kread(
        self,
        area: str,
        pattern: str = "all",
        seed: int = 1,
        count: int = 0,
        threads: int = 1,
        direct: bool = False,
    ) -> Touched:
        """Has the kernel fill the pages: read(2) from a file, with O_DIRECT when `direct`."""
        return self._touch(
            "kread", area, pattern, seed, count, threads, "direct" if direct else "plain"
        )

    def transient(self, area: str, first: int, count: int) -> Touched:
        """Writes each page by a thread of its own that starts for it and ends."""
        return self._touch("transient", area, first, count)

    def advise(self, area: str, advice: str, first: int = 0, count: int = 0) -> Pages:
        """madvise: dontneed, free, remove, hugepage, nohugepage, collapse, pageout, mergeable, unmergeable."""
        return self._touch("advise", area, advice, first, count).pages

    def dontneed(self, area: str, first: int = 0, count: int = 0) -> Pages:
        """Drops these pages; a count of 0 means up to the area's end."""
        return self._touch("dontneed", area, first, count).pages

    def mprotect(self, area: str, writable: bool, first: int = 0, count: int = 0) -> Pages:
        """Makes these pages read-only or writable again."""
        return self._touch("mprotect", area, "rw" if writable else "ro", first, count).pages

    def msync(self, area: str) -> None:
        """Has the whole area written back, and waits for it."""
        self.command("msync", area)

    def _mapped(self, *words: object) -> Area:
        area = Area.from_json(self.command(*words)["area"])
        self.areas[area.name] = area
        return area

    def mapnew(self, name: str, kind: str, mib: int, address: int = 0) -> Area:
        """Maps another area: of a kind of DEFAULT_AREAS, `thp` or `hugetlb`; at an exact address, if given."""
        return self._mapped("mapnew", name, kind, mib, address)

    def alias(self, name: str, of: str) -> Area:
        """Maps the pages of a shared area a second time."""
        return self._mapped("alias", name, of)

    def remap(self, name: str, mib: int = 0, skew_pages: int = 0) -> Area:
        """Moves an area by mremap, to a new size if given; its offset within 2 MiB changes by skew_pages."""
        return self._mapped("remap", name, mib, skew_pages)

    def unmap(self, name: str) -> Area:
        """Unmaps an area; returns where it was."""
        self.command("unmap", name)
        return self.areas.pop(name)

    def grow(self, what: str, pages: int) -> Pages:
        """Grows the heap or the main thread's stack and writes the new pages, up to 1024."""
        answer = self.command("grow", what, pages)
        return expand([[answer["first_page"], answer["last_page"]]])

    def digests(self) -> dict[str, int]:
        """A digest of each area's contents, as pages.digest makes it. Reads, and so populates, every page."""
        return {name: int(value, 16) for name, value in self.command("digest")["digests"].items()}

    def digest(self, area: str) -> int:
        """The digest of one area's contents."""
        return int(self.command("digest", area)["digests"][area], 16)

    def fork(self) -> int:
        """Forks a child that waits for commands; returns its pid. One at a time."""
        pid: int = self.command("fork")["child"]
        return pid

    def child(self, *words: object) -> Answer:
        """Has the child do any command of this program, with one thread: child("digest"), child("exit")."""
        return self.command("child", *words)

    def child_write(
        self, area: str, pattern: str = "all", seed: int = 1, count: int = 0
    ) -> Touched:
        """Has the child write; correct as long as the area is where it was when the child was forked."""
        return Touched.from_json(self.areas[area], self.child("write", area, pattern, seed, count))

    def child_exit(self) -> None:
        """Ends the child and has it reaped."""
        self.child("exit")


@dataclass(frozen=True)
class ChecksumResult:
    """`checks` counts the errors of each kind of check; first_detail says what the first of each was."""

    ok: bool
    errors: int
    loops: int
    checks: dict[str, int]
    first_detail: dict[str, int]


class Checksum(Program):
    """Calculates and verifies until stopped; any harm done to it shows up as an error."""

    def __init__(self, threads: int = 2, mib: int = 8, wrapper: Sequence[str] = ()) -> None:
        super().__init__("checksum", [threads, mib], wrapper=wrapper)
        self.areas = _areas(self.greeting)

    def cost(self) -> float:
        """The present median cost in ns of a first write to a page, over one sweep of 8 MiB."""
        median: float = self.command("cost")["median_ns"]
        return median

    def status(self) -> ChecksumResult:
        """The result so far."""
        return self._result(self.command("status"))

    def stop(self) -> ChecksumResult:
        """Ends the calculation, after one check of all memory, and the program."""
        return self._result(self.command("stop", timeout_s=120))

    @staticmethod
    def _result(answer: Answer) -> ChecksumResult:
        return ChecksumResult(**answer)


@dataclass(frozen=True)
class SweepTime:
    """How long it took to touch so many pages."""

    pages: int
    ns: int
    ns_per_page: float

    @classmethod
    def from_json(cls, answer: Answer) -> Self:
        return cls(answer["pages"], answer["ns"], answer["ns_per_page"])


class Sweep(_InDirectory):
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
        self.area = _areas(self.greeting)["sweep"]

    def sweep(self, stride: int = 1, first: int = 0, count: int = 0, threads: int = 1) -> SweepTime:
        """Rewrites one word in every stride-th page, from page `first` on; 0 for all there are."""
        answer = self.command(
            "sweep", f"stride={stride}", f"first={first}", f"count={count}", f"threads={threads}"
        )
        return SweepTime.from_json(answer)

    def touch(self, mib: int = 64, thp: bool = False) -> SweepTime:
        """Maps fresh memory and touches it: the cost of a first fault."""
        return SweepTime.from_json(self.command("touch", f"mib={mib}", f"thp={int(thp)}"))

    def filetouch(self, path: Path | str) -> SweepTime:
        """Maps a file and reads a byte of each page, in random order. The path has no spaces."""
        return SweepTime.from_json(self.command("filetouch", path))

    def flood(self, seconds: int, threads: int = 1, mib: int = 2) -> Answer:
        """Maps, touches and unmaps as fast as it goes; answers pages, faults, ns, faults_per_s."""
        return self.command("flood", seconds, threads, f"mib={mib}", timeout_s=seconds + 60)


@dataclass(frozen=True)
class Scan:
    """One scan, or the medians of several: ns on the wall, cpu_ns on a processor. regions, pages and
    calls are sums over all rounds."""

    ns: int
    cpu_ns: int
    regions: int
    pages: int
    calls: int
    rounds: int
    ns_min: int
    ns_max: int


class ScanFloor(Program):
    """Scans and write-protects a process as quickly as C can: the floor for benchmarks."""

    def __init__(
        self, pid: int, rounds: int = 1, mode: str = "all", wrapper: Sequence[str] = ()
    ) -> None:
        """mode: all (categories), or written, which takes the kernel's quick way."""
        super().__init__("scanfloor", [pid, rounds, mode], wrapper=wrapper)

    def scan(self) -> Scan:
        """Scans `rounds` times."""
        answer = self.command("scan")
        answer.pop("ok")
        return Scan(**answer)


@dataclass(frozen=True)
class WriteRun:
    """A run of the known-rate writer; times are CLOCK_MONOTONIC, latest_ns its latest wake-up."""

    writes: int
    distinct: int
    start_ns: int
    end_ns: int
    latest_ns: int


class Writer(Program):
    """Writes `rate` pages a second over `pages` pages, in order (cyclic) or at random (uniform)."""

    def __init__(self, mib: int = 64, wrapper: Sequence[str] = ()) -> None:
        super().__init__("writer", [mib], wrapper=wrapper)
        self.area = _areas(self.greeting)["writer"]

    def start(self, pattern: str, rate: int, pages: int, seconds: int, seed: int = 1) -> None:
        """Starts a run and returns at once; finish() waits for it."""
        self.send("run", pattern, rate, pages, seconds, seed)

    def finish(self, timeout_s: float = 600) -> WriteRun:
        """Waits for the end of the run."""
        answer = self.receive(timeout_s)
        answer.pop("ok")
        return WriteRun(**answer)

    def run(self, pattern: str, rate: int, pages: int, seconds: int, seed: int = 1) -> WriteRun:
        """Runs from start to end."""
        self.start(pattern, rate, pages, seconds, seed)
        return self.finish(seconds + 60)


def expected_distinct(pattern: str, rate: float, pages: int, seconds: float) -> float:
    """W(t) of the known-rate writer in closed form, in pages (the expected value, when uniform)."""
    writes = rate * seconds
    if pattern == "cyclic":
        return min(float(pages), writes)
    return float(pages * -np.expm1(writes * np.log1p(-1.0 / pages)))


@dataclass(frozen=True)
class Child:
    """A short-lived child of Hold, and the pages that it wrote."""

    pid: int
    pages: Pages


class Hold(Program):
    """A target that is awkward to trace; `mode` is one of those at the top of hold.c."""

    def __init__(self, mode: str = "sleep", wrapper: Sequence[str] = ()) -> None:
        super().__init__("hold", [mode], wrapper=wrapper)
        self.areas = _areas(self.greeting)

    def write(self, first: int, count: int = 1) -> Touched:
        """Writes pages of `area`."""
        return Touched.from_json(self.areas["area"], self.command("write", first, count))

    def handled(self) -> int:
        """How many faults its own userfaultfd has served."""
        count: int = self.command("handled")["handled"]
        return count

    def exec(self) -> None:
        """Has it exec itself: same pid, new address space, new areas."""
        self.greeting = self.command("exec")
        self.areas = _areas(self.greeting)

    def children(
        self, count: int, pages: int = 1, life_ms: int = 0, chain: bool = False
    ) -> list[Child]:
        """Runs short-lived children one after the other, or each as the parent of the next (chain); each
        writes `pages` pages of its copy of the area `children` and lives for life_ms after that."""
        answer = self.command(
            "children",
            count,
            pages,
            life_ms,
            "chain" if chain else "flat",
            timeout_s=60 + count * life_ms / 1000,
        )
        area = self.areas["children"]
        return [Child(child["pid"], area.expand(child["ranges"])) for child in answer["children"]]
