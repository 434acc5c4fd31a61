"""Frozen snapshots: readers make them, screens show the latest one."""

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
    """The state of a reader; the values are what the screen shows."""

    STARTING = "starting"
    LIVE = "live"
    REPLAY = "replay"
    ENDED = "ended"
    DONE = "done"  # the traced command ran to its end
    FAILED = "failed"


@dataclass(frozen=True)
class Playback:
    """The position of a replay.

    Attributes:
        playing: False while paused.
        speed: 1 is the speed of the recording.
        position: index of the round shown.
        rounds: number of rounds.
        position_s: end of the round shown, from the start of the recording.
        length_s: length of the recording.
    """

    playing: bool
    speed: float
    position: int
    rounds: int
    position_s: float
    length_s: float


@dataclass(frozen=True)
class TargetInfo:
    """Description of a target and of how it is traced.

    Attributes:
        title: the target, for display.
        probe: probe type.
        arm: arming method.
        interval_s: length of a round.
        directory: directory of the recording; empty: none.
    """

    title: str
    probe: str = ""
    arm: str = ""
    interval_s: float = 0.0
    directory: str = ""


@dataclass(frozen=True, eq=False)
class TargetSnapshot:
    """A target at one moment.

    Attributes:
        number: grows with each snapshot.
        state: of the reader.
        about: description of the target and of how it is traced.
        message: what happened, one line; empty: nothing.
        series: the rounds' values.
        mappings: recently written mappings.
        heat: addresses over time; None: nothing was written.
        tlb: recent TLB flushes by reason.
        writers: threads and stacks; None: not traced.
        convergence: None before the first round.
        cost: cost of tracing; None: unknown.
        tables: placement of page tables; None: unknown.
        playback: position of a replay; None for a live target.
        heat_estimated: the heat map is estimated from pages.csv.
        note: last action of the overhead guard; empty: none.
    """

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
    """A process, or a group of processes. Rates are per second; None where the kernel cannot count them.

    Attributes:
        pid: 0 for a group.
        comm: name.
        kind: process, vm or cgroup.
        cgroup: path.
        rss_bytes: resident memory.
        write_faults: rate of write faults.
        first_touch: rate of those that found no page.
        cow: rate of those that copied a page.
        mkwrite: rate of those that notified the file system.
        tlb_flushes: rate of TLB flushes that it caused.
        recent: the latest rates of write faults, the newest one last.
        members: processes in the group.
    """

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
    """All processes at one moment.

    Attributes:
        number: grows with each snapshot.
        state: of the reader.
        message: what happened, one line; empty: nothing.
        processes: those that write most first.
        seconds: period that the rates are averaged over.
        lost: write faults of processes that the kernel-side table had no room for.
        hooks: attached probes.
    """

    number: int
    state: ReaderState
    message: str
    processes: tuple[ProcessRow, ...] = field(default=())
    seconds: float = 0.0
    lost: int = 0
    hooks: frozenset[str] = frozenset()
