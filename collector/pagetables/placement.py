"""Where the page tables of processes lie, and on which nodes their threads run: measured, for people
and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from redirty.collector.errors import NoProcessError, RedirtyError, TargetEndedError
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.numa_sampling import run_by_node
from redirty.collector.linux.process import Process
from redirty.collector.linux.smaps import SmapsMapping, detailed
from redirty.collector.pagetables.advice import advice, remote_share
from redirty.collector.pagetables.planner import overlaps
from redirty.collector.pagetables.walker import Tables, Walker


@dataclass(frozen=True)
class Row:
    """So many page-table pages of a level (or of the mapping) on a node."""

    what: str
    node: int
    pages: int


@dataclass(frozen=True)
class MappingRow:
    """Tables of the lowest level that serve a mapping; one that serves several counts for the first."""

    mapping: SmapsMapping
    node: int
    pages: int


@dataclass(frozen=True)
class Placement:
    """Of one process. levels: the highest first; none where nobody can walk. counted_pages: as the
    kernel counts them (VmPTE), without the top table, but with one that it holds in reserve for each
    huge page of private memory, which no walk finds. huge_pages: mapped as such, None where nobody
    can walk. ran_s: processor time by node while it was sampled."""

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
        """Pages of the lowest level by node."""
        return {row.node: row.pages for row in self.levels if row.what == "pte"}

    @property
    def remote(self) -> float | None:
        """See model.placement.remote_share."""
        return remote_share(self.leaves, self.ran_s)

    @property
    def advice(self) -> str:
        """One sentence."""
        return advice(f"-p {self.pid}", self.leaves, self.ran_s, self.nodes.with_memory)


def levels_of(tables: Tables, nodes: NumaNodes) -> list[Row]:
    """Pages by level and node, the highest level first."""
    where = nodes.of_frames(tables.physical >> np.uint64(12))
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
    """Tables of the lowest level by mapping and node, by address."""
    if not mappings:
        return []
    regions = tables.address[tables.leaves]
    where = nodes.of_frames(tables.physical[tables.leaves] >> np.uint64(12))
    first, last = overlaps(regions, mappings)
    there = first < last
    keys = np.stack([first[there], where[there]])
    rows, counts = np.unique(keys, axis=1, return_counts=True)
    return [
        MappingRow(mappings[at], node, count)
        for (at, node), count in zip(rows.T.tolist(), counts.tolist(), strict=True)
    ]


def counted_pages(pid: int) -> int:
    """VmPTE in pages; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0
    _, _, rest = text.partition("\nVmPTE:")
    return int(rest.split(maxsplit=1)[0]) // 4 if rest else 0


def walker_or_reason(nodes: NumaNodes) -> tuple[Walker | None, str]:
    """What walks page tables here, or why nothing does."""
    try:
        return Walker(nodes.highest), ""
    except RedirtyError as e:
        return None, str(e)


def look(
    pids: list[int], walker: Walker | None, nodes: NumaNodes, sample_s: float
) -> list[Placement]:
    """Samples threads for so long, then walks. A process that ended meanwhile is left out.

    Errors: TargetEndedError when all of them did; NoProcessError.
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
        except OSError:
            continue
        counted = counted_pages(pid)
        if counted:
            found.append(Placement(pid, names[pid], counted, huge, levels, mappings, ran_s, nodes))
    if not found and not any(counted_pages(pid) for pid in pids):
        who = f"process {pids[0]}" if len(pids) == 1 else "all processes of the target"
        raise TargetEndedError(f"{who} ended before page tables were looked at")
    return found


# ---- out ----
