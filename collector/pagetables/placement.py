"""Measures where the page tables of processes lie, and on which nodes their threads run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from redirty.collector.errors import (
    NoProcessError,
    RedirtyError,
    TargetEndedError,
    require_resources,
)
from redirty.collector.linux import procfs
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.numa_sampling import run_by_node
from redirty.collector.linux.process import Process
from redirty.collector.linux.smaps import SmapsMapping, detailed
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE
from redirty.collector.pagetables.advice import advice, remote_share
from redirty.collector.pagetables.planner import overlaps
from redirty.collector.pagetables.walker import Tables, Walker


@dataclass(frozen=True)
class Row:
    """Number of page-table pages of a level on a node."""

    what: str
    node: int
    pages: int


@dataclass(frozen=True)
class MappingRow:
    """Number of tables of the lowest level for a mapping; a table shared by several counts for the first."""

    mapping: SmapsMapping
    node: int
    pages: int


@dataclass(frozen=True)
class Placement:
    """Placement of the page tables of a process.

    Attributes:
        pid: The process.
        comm: Its name.
        counted_pages: Page-table pages as the kernel counts them (VmPTE): without the top table, but
            with one kept in reserve for each huge page of private memory, which no walk finds.
        huge_pages: Number of huge pages; None if page tables cannot be walked here.
        levels: Pages by level and node, the highest level first; empty if they cannot be walked.
        mappings: Tables of the lowest level by mapping and node.
        ran_s: Processor seconds by node while it was sampled.
        nodes: The NUMA nodes of this machine.
    """

    pid: int
    comm: str
    counted_pages: int
    huge_pages: int | None
    levels: list[Row]
    mappings: list[MappingRow]
    ran_s: dict[int, float]
    nodes: NumaNodes

    @property
    def leaves(self) -> dict[int, int]:
        """Page-table pages of the lowest level by node."""
        return {row.node: row.pages for row in self.levels if row.what == "pte"}

    @property
    def remote(self) -> float | None:
        """Share of page walks that leave their node: see advice.remote_share()."""
        return remote_share(self.leaves, self.ran_s)

    @property
    def advice(self) -> str:
        """Placement advice, one sentence."""
        return advice(f"-p {self.pid}", self.leaves, self.ran_s, self.nodes.with_memory)


def levels_of(tables: Tables, nodes: NumaNodes) -> list[Row]:
    """Count page-table pages by level and node, the highest level first."""
    where = nodes.of_frames(tables.physical >> np.uint64(PAGE_SHIFT))
    found = []
    for level in range(tables.top, 0, -1):
        numbers, counts = np.unique(where[tables.level == level], return_counts=True)
        found += [
            Row(tables.name(level), int(n), int(c)) for n, c in zip(numbers, counts, strict=True)
        ]
    return found


def by_mapping(
    tables: Tables, nodes: NumaNodes, mappings: Sequence[SmapsMapping]
) -> list[MappingRow]:
    """Count tables of the lowest level by mapping and node, ascending by address."""
    if not mappings:
        return []
    regions = tables.address[tables.leaves]
    where = nodes.of_frames(tables.physical[tables.leaves] >> np.uint64(PAGE_SHIFT))
    first, last = overlaps(regions, mappings)
    mapped = first < last
    keys = np.stack([first[mapped], where[mapped]])
    rows, counts = np.unique(keys, axis=1, return_counts=True)
    return [
        MappingRow(mappings[at], node, count)
        for (at, node), count in zip(rows.T.tolist(), counts.tolist(), strict=True)
    ]


def counted_pages(pid: int) -> int:
    """Return the page-table pages that the kernel counts for a process (VmPTE); 0 once it is gone."""
    return (procfs.status_kib(pid, "VmPTE") << 10) // PAGE_SIZE


def walker_or_reason(nodes: NumaNodes) -> tuple[Walker | None, str]:
    """Return a walker of page tables, or the reason why this machine allows none."""
    try:
        return Walker(nodes.highest), ""
    except RedirtyError as e:
        return None, str(e)


def measure(
    pids: list[int], walker: Walker | None, nodes: NumaNodes, sample_s: float
) -> list[Placement]:
    """Sample the threads of processes for a while, then walk their page tables.

    Processes that ended meanwhile are left out.

    Raises:
        TargetEndedError: All processes ended.
        NoProcessError: There is no such process.
    """
    names = {}
    for pid in pids:
        try:
            process = Process(pid)
        except (NoProcessError, TargetEndedError):
            if len(pids) == 1:
                raise
            continue  # one of many
        names[pid] = process.comm
        process.close()
    pids = list(names)
    ran = run_by_node(pids, nodes.cpus, sample_s)
    found = []
    for pid, ran_s in zip(pids, ran, strict=True):
        huge: int | None = None
        levels: list[Row] = []
        mappings: list[MappingRow] = []
        try:
            if walker is not None:
                tables = walker.walk(pid)
                huge = len(tables.huge)
                levels = levels_of(tables, nodes)
                mappings = by_mapping(tables, nodes, detailed(pid))
        except OSError as e:
            require_resources(e, f"cannot read the page tables of process {pid}")
            continue
        counted = counted_pages(pid)
        if counted:
            found.append(Placement(pid, names[pid], counted, huge, levels, mappings, ran_s, nodes))
    if not found and not any(counted_pages(pid) for pid in pids):
        who = f"process {pids[0]}" if len(pids) == 1 else "all processes of the target"
        raise TargetEndedError(f"{who} ended before page tables were read")
    return found
