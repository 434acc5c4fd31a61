"""Relocates all page tables of a process again and again, to the node where they are: the moves of
`redirty pagetables` on a machine with one node. As a script: PID REGIONS, a line after each round."""

from __future__ import annotations

import sys
from collections import Counter

from redirty.collector.errors import ArmError
from redirty.collector.linux import numa
from redirty.collector.linux.smaps import detailed
from redirty.collector.pagetables.planner import StepPlanner, plan
from redirty.collector.pagetables.walker import Tables, Walker
from redirty.collector.ptrace.injector_client import AddressesInUseError, Injector

TIMEOUT_S = 2.0


def movable(tables: Tables) -> dict[int, int]:
    """Region -> where its table lies."""
    leaves = tables.leaves
    return dict(zip(tables.address[leaves].tolist(), tables.physical[leaves].tolist(), strict=True))


class Relocator:
    """Moves what can be moved, in steps of so many regions. stopped_s, moves_s: of all steps, and of
    that the moves. refused: why steps were not done."""

    def __init__(self, pid: int, regions: int) -> None:
        self.pid = pid
        self.regions = regions
        self.walker = Walker(numa.read_nodes().highest)
        self.injector = Injector()
        self.in_use: set[int] = set()
        self.stopped_s = self.moves_s = 0.0
        self.refused = Counter[str]()

    def round(self) -> tuple[int, int, float]:
        """(tables that are elsewhere now, of how many that were to move, the longest stop in s)."""
        before = self.walker.walk(self.pid)
        while True:
            leaves = before.address[before.leaves]
            wanted = plan(leaves, detailed(self.pid), self.in_use)
            try:
                longest = self._steps(StepPlanner(wanted))
                break
            except AddressesInUseError as e:
                self.in_use.update(e.addresses)
        old, new = movable(before), movable(self.walker.walk(self.pid))
        at = wanted.regions.tolist()
        return sum(old[a] != new.get(a) for a in at), len(at), longest

    def _steps(self, steps: StepPlanner) -> float:
        longest = 0.0
        while step := steps.next(self.regions):
            try:
                took, moves_s = self.injector.relocate(
                    self.pid, 0, step.runs, step.segments, TIMEOUT_S
                )
                longest = max(longest, took)
                self.stopped_s += took
                self.moves_s += moves_s
            except AddressesInUseError:
                raise
            except ArmError as e:
                self.refused[str(e)] += 1
        return longest

    def close(self) -> None:
        """Ends it."""
        self.injector.close()
        self.walker.close()


def main() -> None:
    """The script."""
    relocator = Relocator(int(sys.argv[1]), int(sys.argv[2]))
    while True:
        moved, of, longest = relocator.round()
        print(moved, of, f"{longest:.6f}", dict(relocator.refused), flush=True)


if __name__ == "__main__":
    main()
