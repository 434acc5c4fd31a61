"""Where the page tables of processes lie, and on which nodes their threads run: measured, for people
and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from redirty.collector.errors import NoProcessError, RedirtyError, TargetEndedError, one_line
from redirty.collector.linux.maps import mapping_class
from redirty.collector.linux.numa import Nodes, machine_tables
from redirty.collector.linux.numa_sampling import run_by_node
from redirty.collector.linux.process import Process
from redirty.collector.linux.smaps import Detailed, detailed
from redirty.collector.pagetables.advice import advice, remote_share
from redirty.collector.pagetables.planner import overlaps
from redirty.collector.pagetables.walker import Tables, Walker
from redirty.collector.units import show_pages, show_time

_SHOWN_MAPPINGS = 12


@dataclass(frozen=True)
class Row:
    """So many page-table pages of a level (or of the mapping) on a node."""

    what: str
    node: int
    pages: int


@dataclass(frozen=True)
class MappingRow:
    """Tables of the lowest level that serve a mapping; one that serves several counts for the first."""

    mapping: Detailed
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
    nodes: Nodes

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


def levels_of(tables: Tables, nodes: Nodes) -> list[Row]:
    """Pages by level and node, the highest level first."""
    where = nodes.of_frames(tables.physical >> np.uint64(12))
    found = []
    for level in range(tables.top, 0, -1):
        numbers, counts = np.unique(where[tables.level == level], return_counts=True)
        found += [
            Row(tables.name(level), int(n), int(c)) for n, c in zip(numbers, counts, strict=True)
        ]
    return found


def by_mapping(tables: Tables, nodes: Nodes, mappings: Sequence[Detailed]) -> list[MappingRow]:
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


def walker_or_reason(nodes: Nodes) -> tuple[Walker | None, str]:
    """What walks page tables here, or why nothing does."""
    try:
        return Walker(nodes.highest), ""
    except RedirtyError as e:
        return None, str(e)


def look(pids: list[int], walker: Walker | None, nodes: Nodes, sample_s: float) -> list[Placement]:
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


def as_json(found: Sequence[Placement], nodes: Nodes, reason: str) -> dict[str, Any]:
    """For programs. reason: why page tables were not walked, empty when they were."""
    return {
        "source": "vmstat" if reason else "walk",
        "reason": reason or None,
        "nodes": {"online": list(nodes.online), "with_memory": list(nodes.with_memory)},
        "machine_pages": machine_tables(nodes.online),
        "processes": [_process_json(p) for p in found],
    }


def _process_json(p: Placement) -> dict[str, Any]:
    return {
        "pid": p.pid,
        "comm": p.comm,
        "counted_pages": p.counted_pages,
        "huge_pages": p.huge_pages,
        "levels": [{"level": r.what, "node": r.node, "pages": r.pages} for r in p.levels],
        "mappings": [
            {
                "start": hex(r.mapping.start),
                "end": hex(r.mapping.end),
                "perms": r.mapping.perms,
                "mapping_class": mapping_class(r.mapping.perms, r.mapping.path),
                "path": r.mapping.path,
                "node": r.node,
                "pages": r.pages,
            }
            for r in p.mappings
        ],
        "threads_ran_s": p.ran_s,
        "remote_walk_share": p.remote,
        "advice": p.advice,
    }


def as_text(found: Sequence[Placement], nodes: Nodes, reason: str) -> str:
    """For people."""
    lines = []
    for p in found:
        lines.append(
            f"process {p.pid} ({one_line(p.comm)}): {show_pages(p.counted_pages)} of page tables"
        )
        lines += _levels_text(p)
        if reason:
            lines += ["", f"  by node: not known for one process here ({reason})"]
        lines += ["", f"  threads ran  {_ran_text(p.ran_s)}"]
        if p.remote is not None:
            lines.append(f"  remote page walks  {p.remote:.0%}, if all of its memory is used alike")
        lines += [f"  {p.advice}", ""]
    tables = machine_tables(nodes.online)
    if tables:
        each = ", ".join(f"node {n} {show_pages(c)}" for n, c in tables.items())
        lines.append(f"page tables of all programs: {each} (vmstat)")
    source = "from the nodes' vmstat and VmPTE" if reason else "walked by BPF"
    lines.append(f"read {source}")
    return "\n".join(lines) + "\n"


def _levels_text(p: Placement) -> list[str]:
    if not p.levels:
        return []
    nodes = sorted({row.node for row in p.levels})
    head = "".join(f"{f'node {n}':>12}" for n in nodes)
    lines = ["", f"  {'level':<8}{head}"]
    for name in dict.fromkeys(row.what for row in p.levels):
        counts = {row.node: row.pages for row in p.levels if row.what == name}
        lines.append(f"  {name:<8}" + "".join(f"{counts.get(n, 0):>12}" for n in nodes))
    if p.huge_pages:
        lines.append(f"  {p.huge_pages} huge pages need no pte; for most a page is held in reserve")
    rows = sorted(p.mappings, key=lambda r: -r.pages)
    lines += ["", f"  {'pages':>8}  {'node':>4}  mapping (pte level)"]
    for row in rows[:_SHOWN_MAPPINGS]:
        m = row.mapping
        name = one_line(m.path) or "(anonymous)"
        lines.append(f"  {row.pages:>8}  {row.node:>4}  0x{m.start:x} {m.perms} {name}")
    if len(rows) > _SHOWN_MAPPINGS:
        rest = sum(row.pages for row in rows[_SHOWN_MAPPINGS:])
        lines.append(f"  {rest:>8}        in {len(rows) - _SHOWN_MAPPINGS} more (--json has all)")
    return lines


def _ran_text(ran_s: dict[int, float]) -> str:
    return ", ".join(f"node {n} {show_time(s)}" for n, s in ran_s.items()) or "not at all"
