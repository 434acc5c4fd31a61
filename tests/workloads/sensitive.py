"""Drivers of checksum, which detects any harm done to it, and of hold, which is awkward to trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .pages import Pages, Touched, areas_of
from .process import Answer, Program


@dataclass(frozen=True)
class ChecksumResult:
    """The result of checksum. `checks` counts the errors of each kind of check; first_detail describes the first."""

    ok: bool
    errors: int
    loops: int
    checks: dict[str, int]
    first_detail: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """The cost of one write to each of `pages` pages: the median in ns, and how many of the writes faulted."""

    ns: float
    pages: int
    faults: int


class Checksum(Program):
    """Drives checksum, which calculates and verifies until stopped; any harm done to it becomes an error."""

    def __init__(self, threads: int = 2, mib: int = 8, wrapper: Sequence[str] = ()) -> None:
        super().__init__("checksum", [threads, mib], wrapper=wrapper)
        self.areas = areas_of(self.greeting)

    def cost(self) -> Cost:
        """Measure what a first write to a page costs at present, over one sweep of 8 MiB."""
        answer = self.command("cost")
        return Cost(answer["median_ns"], answer["pages"], answer["faults"])

    def status(self) -> ChecksumResult:
        """Return the result so far."""
        return self._result(self.command("status"))

    def stop(self) -> ChecksumResult:
        """End the calculation, after one check of all memory, and the program."""
        return self._result(self.command("stop"))

    @staticmethod
    def _result(answer: Answer) -> ChecksumResult:
        return ChecksumResult(**answer)


@dataclass(frozen=True)
class Child:
    """A short-lived child of Hold, and the pages that it wrote."""

    pid: int
    pages: Pages


class Hold(Program):
    """Drives hold, a target that is awkward to trace; `mode` is one of those at the top of hold.c."""

    def __init__(self, mode: str = "sleep", wrapper: Sequence[str] = ()) -> None:
        super().__init__("hold", [mode], wrapper=wrapper)
        self.areas = areas_of(self.greeting)

    def write(self, first: int, count: int = 1) -> Touched:
        """Write pages of `area`."""
        return Touched.from_json(self.areas["area"], self.command("write", first, count))

    def handled(self) -> int:
        """Return how many faults its own userfaultfd has served."""
        count: int = self.command("handled")["handled"]
        return count

    def exec(self) -> None:
        """Have it exec itself: same PID, new address space, new areas."""
        self.greeting = self.command("exec")
        self.areas = areas_of(self.greeting)

    def children(
        self, count: int, pages: int = 1, life_ms: int = 0, chain: bool = False
    ) -> list[Child]:
        """Run short-lived children one after the other, or each as the parent of the next (chain).

        Each writes `pages` pages of its copy of the area `children` and lives for life_ms after that.
        """
        answer = self.command(
            "children",
            count,
            pages,
            life_ms,
            "chain" if chain else "flat",
        )
        area = self.areas["children"]
        return [Child(child["pid"], area.expand(child["ranges"])) for child in answer["children"]]
