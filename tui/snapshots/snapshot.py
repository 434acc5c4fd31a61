"""Frozen pictures of what is known at one moment: readers make them, screens show the newest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from redirty.tui.snapshots.convergence import Convergence
from redirty.tui.snapshots.cost import Cost
from redirty.tui.snapshots.heat import HeatMap
from redirty.tui.snapshots.history import MappingTable, Series, TlbRow, WriterRow
from redirty.tui.snapshots.page_tables import PageTables


class ReaderState(Enum):
    """What the reader does."""

    STARTING = "starting"
    LIVE = "live"
    REPLAY = "replay"
    ENDED = "ended"
    DONE = "done"  # as it was to: a command to its end
    FAILED = "failed"


@dataclass(frozen=True)
class Playback:
    """Where a replay is. position_s of length_s; round index of rounds; speed: 1 is as it was."""

    playing: bool
    speed: float
    position: int
    rounds: int
    position_s: float
    length_s: float


@dataclass(frozen=True)
class TargetInfo:
    """What is traced, and how."""

    title: str
    probe: str = ""
    arm: str = ""
    interval_s: float = 0.0
    directory: str = ""


@dataclass(frozen=True, eq=False)
class TargetSnapshot:
    """A target at one moment. number: grows with each. message: what happened, one line; "": nothing.
    note: what the guard did. tables: None where they are not known. writers: None when threads and
    stacks were not asked for."""

    number: int
    state: ReaderState
    about: TargetInfo
    message: str
    series: Series
    mappings: MappingTable
    heat: HeatMap | None
    tlb: tuple[TlbRow, ...]
    writers: tuple[WriterRow, ...] | None = None
    convergence: Convergence | None = None
    cost: Cost | None = None
    tables: PageTables | None = None
    playback: Playback | None = None
    heat_estimated: bool = False
    note: str = ""


class ProcessRow(NamedTuple):
    """A process, or a group of them. Rates are for each second; None where the kernel does not tell.
    kind: process, vm or cgroup. pid: 0 for a group. members: processes in it."""

    pid: int
    comm: str
    kind: str
    cgroup: str
    rss_bytes: int
    write_faults: float
    first_touch: float | None
    cow: float | None
    mkwrite: float | None
    tlb_flushes: float | None
    recent: tuple[float, ...] = ()
    members: int = 1


@dataclass(frozen=True, eq=False)
class OverviewSnapshot:
    """All processes at one moment; seconds: what the rates are the mean of."""

    number: int
    state: ReaderState
    message: str
    processes: tuple[ProcessRow, ...] = field(default=())
    seconds: float = 0.0
    lost: int = 0
    features: frozenset[str] = frozenset()
