"""Rounds that a test steps: it decides when a round ends, so it knows what is in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.pageset import PageSet, from_pages, page_numbers
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.command import Command
from redirty.collector.target.targets import Pids, TargetSet
from redirty.collector.tracking.rounds import Recorder, Round, SpaceRound
from redirty.collector.tracking.start import start_command

from tests.support import pagemap_oracle
from tests.support.closing import Closing
from tests.support.tested_methods import PROBE, arm_method
from tests.workloads.pages import Area, Pages

NONE: Pages = np.empty(0, np.uint64)


def open_tracer(options: Options | None = None, follow_fork: bool = False) -> Tracer:
    """Open a tracer with the kind of probe that is tested."""
    wanted = options or Options(slots=256 if follow_fork else 64)
    return Tracer(replace(wanted, probe=PROBE, follow_fork=follow_fork))


def wipe(tracer: Tracer) -> None:
    """Empty the logs and the target map, so that nothing of one test is left to the next."""
    for pid in tracer.targets():
        tracer.drop_target(pid)
    for _ in range(2):
        tracer.flip()
        tracer.wait_grace()
        tracer.drain()
        tracer.take_stats()
        tracer.take_arm_writes()


class LiveRounds(Closing):
    """A recorder over some processes, or any other target; leaving the `with` block closes everything.

    begin() starts round 0; end_round() ends the current round and starts the next.
    """

    def __init__(
        self,
        *pids: int,
        targets: TargetSet | None = None,
        options: Options | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Open what is needed; nothing is armed yet.

        tracer: one to use, with the default options, and to leave open, so that not every test
        compiles it anew.
        """
        self.targets: TargetSet = targets or Pids(list(pids))
        self._lent = tracer is not None
        self._injector = Injector()
        self._tracer = tracer
        self._recorder: Recorder | None = None
        try:
            if self._tracer is None:
                self._tracer = open_tracer(options, self.targets.follow_fork)
            self._recorder = Recorder(self._tracer, self.targets, arm_method(), self._injector)
        except BaseException:
            self.close()
            raise

    @property
    def tracer(self) -> Tracer:
        """The tracer, as long as it is open."""
        assert self._tracer is not None
        return self._tracer

    @property
    def recorder(self) -> Recorder:
        """The recorder, as long as it is open."""
        assert self._recorder is not None
        return self._recorder

    @property
    def log_sees_all(self) -> bool:
        """True if the log also sees the kernel's own writes; tracepoints see only the processor's."""
        return self.tracer.probe != "tracepoint"

    def begin(self) -> Self:
        """Arm for the first time; a command runs from here on."""
        if isinstance(self.targets, Command):
            start_command(self.recorder, self.targets)
        else:
            self.recorder.begin()
        return self

    def end_round(self) -> Round:
        """End the round and start the next."""
        return self.recorder.end_round()

    def round_of(self, pid: int) -> SpaceRound:
        """End the round; return the one address space that a process had in it."""
        return space_of(self.end_round(), pid)

    def close(self) -> None:
        """Release everything. A second call does nothing."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        if self._tracer is not None:
            if self._lent:
                wipe(self._tracer)
            else:
                self._tracer.close()
            self._tracer = None
        self._injector.close()
        if isinstance(self.targets, Command):
            self.targets.abandon()


def spaces_of(result: Round, pid: int) -> list[SpaceRound]:
    """Return all address spaces of a process in a round: two if it ran another program in it."""
    return [space for space in result.spaces if space.pid == pid]


def space_of(result: Round, pid: int) -> SpaceRound:
    """Return the only address space of a process in a round."""
    found = spaces_of(result, pid)
    assert len(found) == 1, f"process {pid} has {len(found)} address spaces in the round"
    return found[0]


def within(pages: PageSet, areas: Iterable[Area] | Area | Pages) -> Pages:
    """Return the pages of a set that lie in some areas, or are among some page numbers, sorted."""
    if isinstance(areas, np.ndarray):
        return page_numbers(pages & from_pages(areas))
    chosen = [areas] if isinstance(areas, Area) else list(areas)
    return page_numbers(pages & from_pages(np.unique(np.concatenate([a.pages for a in chosen]))))


def assert_same(found: Pages, truth: Pages, what: str) -> None:
    """Assert that two sets are equal page for page; name pages that are extra or missing."""
    if np.array_equal(found, truth):
        return
    extra, lacking = np.setdiff1d(found, truth), np.setdiff1d(truth, found)
    raise AssertionError(
        f"{what}: {len(found)} pages found, {len(truth)} true; "
        f"{len(extra)} too many {[hex(int(p)) for p in extra[:4]]}, "
        f"{len(lacking)} missing {[hex(int(p)) for p in lacking[:4]]}"
    )


@dataclass(frozen=True)
class KernelState:
    """Page-table state of some pages, read by none of the code under test.

    Attributes:
        present: page numbers that are mapped.
        written: those of them that are no longer armed.
    """

    present: Pages
    written: Pages


def kernel_state(pid: int, areas: Iterable[Area] | Area) -> KernelState:
    """Return what the page tables say of some areas of a process."""
    present, written = [NONE], [NONE]
    for area in [areas] if isinstance(areas, Area) else areas:
        entries = pagemap_oracle.entries(pid, area)
        here = pagemap_oracle.is_present(entries)
        if arm_method() == "soft-dirty":
            touched = pagemap_oracle.is_soft_dirty(entries)
        else:
            touched = ~pagemap_oracle.is_protected(entries)
        pages = area.pages[: len(entries)]
        present.append(pages[here])
        written.append(pages[here & touched])
    return KernelState(np.sort(np.concatenate(present)), np.sort(np.concatenate(written)))
