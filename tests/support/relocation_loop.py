"""A loop that relocates all page tables of a process to the node on which they are: the moves of
`redirty pagetables` on a machine with one node. As a script: PID REGIONS; it prints a line after each round.
"""

from __future__ import annotations

import sys
from collections import Counter

from redirty.collector.errors import ArmError
from redirty.collector.linux import numa
from redirty.collector.linux.smaps import detailed
from redirty.collector.pagetables.planner import StepPlanner, plan
from redirty.collector.pagetables.walker import Tables, Walker
from redirty.collector.ptrace.injector_client import AddressesInUseError, Injector

STOP_S = 30.0  # less than the injector may take to answer


def movable(tables: Tables) -> dict[int, int]:
    """Return the physical address of the table of each region, by region."""
    leaves = tables.leaves
    return dict(zip(tables.address[leaves].tolist(), tables.physical[leaves].tolist(), strict=True))


class Relocator:
    """Relocates all movable tables of a process.

    Attributes:
        regions: the number of regions in a step.
        stopped_s: how long the target was stopped by all steps.
        moves_s: how much of that the moves took.
        refused: why steps were not done.
    """

    def __init__(self, pid: int, regions: int, stop_s: float = STOP_S) -> None:
        """Prepare it; stop_s: how long the threads may take to stop."""
        self.pid = pid
        self.stop_s = stop_s
        self.regions = regions
        self.walker = Walker(numa.read_nodes().highest)
        self.injector = Injector()
        self.in_use: set[int] = set()
        self.stopped_s = self.moves_s = 0.0
        self.refused = Counter[str]()

    def round(self) -> tuple[int, int, float]:
        """Relocate everything once.

        Returns: the number of tables that moved, the number that were to move, and the longest stop in seconds.
        """
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
                    self.pid, 0, step.runs, step.segments, self.stop_s
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
        """Close the injector and the walker."""
        self.injector.close()
        self.walker.close()


def main() -> None:
    """Run the script."""
    relocator = Relocator(int(sys.argv[1]), int(sys.argv[2]))
    while True:
        moved, of, longest = relocator.round()
        print(moved, of, f"{longest:.6f}", dict(relocator.refused), flush=True)


if __name__ == "__main__":
    main()
