"""NUMA nodes of this machine, with their memory and processors.

Sources: Documentation/ABI/stable/sysfs-devices-node; /proc/zoneinfo (proc.rst).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from redirty.collector.pageset import PAGE_SHIFT, U64

_DIRECTORY = Path("/sys/devices/system/node")
_ZONE = re.compile(r"^Node +(\d+), zone", re.MULTILINE)
_TABLES = re.compile(r"^nr_page_table_pages (\d+)$", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class NumaNodes:
    """The NUMA nodes of a machine.

    Attributes:
        online: Node numbers, ascending.
        with_memory: Those that have memory.
        cpus: Processor -> node.
        starts: (n,) first page frames of ranges of memory, ascending.
        ends: (n,) their ends, exclusive.
        owners: (n,) the node of each range.
    """

    online: tuple[int, ...]
    with_memory: tuple[int, ...]
    cpus: dict[int, int]
    starts: U64
    ends: U64
    owners: npt.NDArray[np.int64]

    def of_frames(self, frames: U64) -> npt.NDArray[np.int64]:
        """Return the node of each frame, -1 where there is no memory."""
        at = np.searchsorted(self.starts, frames, side="right").astype(np.int64) - 1
        inside = (at >= 0) & (frames < self.ends[at])
        return np.where(inside, self.owners[at], -1)

    @property
    def highest(self) -> int:
        """Upper bound of all physical addresses of memory."""
        return int(self.ends.max()) << PAGE_SHIFT if len(self.ends) else 0


def parse_list(text: str) -> list[int]:
    """Parse a kernel list of numbers: '0-3,8' -> [0, 1, 2, 3, 8]."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found += range(int(first), int(last or first) + 1)
    return found


def zone_ranges(zoneinfo: str) -> list[tuple[int, int, int]]:
    """Return (first frame, end frame, node) of each zone with memory in /proc/zoneinfo."""
    found = []
    begins = list(_ZONE.finditer(zoneinfo))
    for match, after in zip(begins, [*begins[1:], None], strict=True):
        zone = zoneinfo[match.start() : after.start() if after else len(zoneinfo)]
        spanned = re.search(r"^ +spanned +(\d+)$", zone, re.MULTILINE)
        start = re.search(r"^ +start_pfn: +(\d+)$", zone, re.MULTILINE)
        if spanned and start and int(spanned[1]):
            found.append((int(start[1]), int(start[1]) + int(spanned[1]), int(match[1])))
    return sorted(found)


def read_nodes() -> NumaNodes:
    """Read the nodes of this machine; a kernel without NUMA has one, node 0."""
    ranges = zone_ranges(Path("/proc/zoneinfo").read_text())
    starts, ends, owners = (np.array([r[i] for r in ranges]) for i in range(3))
    online = _listed("online") or [0]
    cpus: dict[int, int] = {}
    for node in online:
        path = _DIRECTORY / f"node{node}/cpulist"
        if path.exists():
            cpus |= dict.fromkeys(parse_list(path.read_text()), node)
    return NumaNodes(
        online=tuple(online),
        with_memory=tuple(_listed("has_memory") or online),
        cpus=cpus,
        starts=starts.astype(np.uint64),
        ends=ends.astype(np.uint64),
        owners=owners.astype(np.int64),
    )


def _listed(name: str) -> list[int]:
    try:
        return parse_list((_DIRECTORY / name).read_text())
    except OSError:
        return []


def machine_tables(nodes: Iterable[int]) -> dict[int, int]:
    """Return the page-table pages of all programs by node, for nodes whose number is known."""
    found = {}
    for node in nodes:
        try:
            match = _TABLES.search((_DIRECTORY / f"node{node}/vmstat").read_text())
        except OSError:
            continue
        if match:
            found[node] = int(match[1])
    return found
