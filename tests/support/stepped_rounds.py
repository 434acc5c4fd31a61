"""Drives the recorder by hand: a test says when a round ends, so that it knows what is in it.

Two environment variables choose how, so that the same tests run on other kernels:
REDIRTY_TEST_PROBE (auto, fentry, kprobe, tracepoint) and REDIRTY_TEST_ARM (auto, uffd, soft-dirty).
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from redirty.collector.arming.methods import choose
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.pageset import PageSet, from_pages, page_numbers
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.command import Command
from redirty.collector.target.targets import Pids, TargetSet
from redirty.collector.tracking.rounds import Recorder, Round, SpaceRound
from redirty.collector.tracking.start import start_command

from tests.workloads.pages import PAGE_BYTES, Area, Pages

PROBE = os.environ.get("REDIRTY_TEST_PROBE", "auto")
ARM = os.environ.get("REDIRTY_TEST_ARM", "auto")
PROGRAM = Path(sys.executable).with_name("redirty")
NONE: Pages = np.empty(0, np.uint64)
PATIENCE_S = 300  # for anything to happen at all: an emulated machine is slow


@functools.cache
def way() -> str:
    """The way of arming: the wanted one, or the one that auto takes here. Tried once."""
    injector = Injector()
    try:
        return choose(ARM, injector)
    finally:
        injector.close()


def open_tracer(options: Options | None = None, follow_fork: bool = False) -> Tracer:
    """The log with the probe that is tested."""
    wanted = options or Options(slots=256 if follow_fork else 64)
    return Tracer(replace(wanted, probe=PROBE, follow_fork=follow_fork))


def wipe(tracer: Tracer) -> None:
    """Leaves nothing of one test to the next."""
    for pid in tracer.targets():
        tracer.drop_target(pid)
    for _ in range(2):
        tracer.flip()
        tracer.wait_grace()
        tracer.drain()
        tracer.take_stats()


class LiveRounds:
    """A recorder over some processes, or any other target; leaving the `with` block ends all of it.

    begin() starts round 0; end_round() ends the round that runs and starts the next.
    tracer: one to use, and to leave open, so that not every test compiles it anew; with the
    default options.
    """

    def __init__(
        self,
        *pids: int,
        targets: TargetSet | None = None,
        options: Options | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.targets: TargetSet = targets or Pids(list(pids))
        self._lent = tracer is not None
        self._injector = Injector()
        self._tracer = tracer
        self._recorder: Recorder | None = None
        try:
            if self._tracer is None:
                self._tracer = open_tracer(options, self.targets.follow_fork)
            self._recorder = Recorder(self._tracer, self.targets, way(), self._injector)
        except BaseException:
            self.close()
            raise

    @property
    def tracer(self) -> Tracer:
        """The log, as long as it is open."""
        assert self._tracer is not None
        return self._tracer

    @property
    def recorder(self) -> Recorder:
        """The recorder, as long as it is open."""
        assert self._recorder is not None
        return self._recorder

    @property
    def log_sees_all(self) -> bool:
        """Whether the log sees the kernel's own writes too; tracepoints see the processor's."""
        return self.tracer.probe != "tracepoint"

    def begin(self) -> Self:
        """Arms for the first time; a command runs from here on."""
        if isinstance(self.targets, Command):
            start_command(self.recorder, self.targets)
        else:
            self.recorder.begin()
        return self

    def end_round(self) -> Round:
        """Ends the round and begins the next."""
        return self.recorder.end_round()

    def round_of(self, pid: int) -> SpaceRound:
        """Ends the round; the one address space that this process had in it."""
        return space_of(self.end_round(), pid)

    def close(self) -> None:
        """Lets go of everything. A second call does nothing."""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def spaces_of(result: Round, pid: int) -> list[SpaceRound]:
    """All address spaces of a process in a round: two when it ran another program in it."""
    return [space for space in result.spaces if space.pid == pid]


def space_of(result: Round, pid: int) -> SpaceRound:
    """The only address space of a process in a round."""
    found = spaces_of(result, pid)
    assert len(found) == 1, f"process {pid} has {len(found)} address spaces in the round"
    return found[0]


def within(pages: PageSet, areas: Iterable[Area] | Area | Pages) -> Pages:
    """Those of a set's pages that lie in some areas, or are among some page numbers: sorted."""
    if isinstance(areas, np.ndarray):
        return page_numbers(pages & from_pages(areas))
    chosen = [areas] if isinstance(areas, Area) else list(areas)
    return page_numbers(pages & from_pages(np.unique(np.concatenate([a.pages for a in chosen]))))


def assert_same(found: Pages, truth: Pages, what: str) -> None:
    """Page for page; says which pages are too many and which are missing."""
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
    """What /proc/PID/pagemap says of some pages; read here, by nothing of the program tested.

    present: page numbers mapped. written: of them those that are armed no more.
    """

    present: Pages
    written: Pages


_PRESENT, _UFFD_WP, _SOFT_DIRTY = (np.uint64(1 << bit) for bit in (63, 57, 55))


def kernel_state(pid: int, areas: Iterable[Area] | Area) -> KernelState:
    """The page tables' own word on some areas of a process (admin-guide/mm/pagemap.rst)."""
    present, written = [NONE], [NONE]
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for area in [areas] if isinstance(areas, Area) else areas:
            data = os.pread(pagemap.fileno(), area.page_count * 8, area.first_page * 8)
            entries = np.frombuffer(data, np.uint64)
            here = (entries & _PRESENT) != 0
            soft = (entries & _SOFT_DIRTY) != 0
            touched = soft if way() == "soft-dirty" else (entries & _UFFD_WP) == 0
            present.append(area.pages[: len(entries)][here])
            written.append(area.pages[: len(entries)][here & touched])
    return KernelState(np.sort(np.concatenate(present)), np.sort(np.concatenate(written)))


def redirty(*words: object, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Runs the program as a user would, with the probe and the arming that are tested."""
    return subprocess.run(
        command_line(*words), check=False, capture_output=True, text=True, timeout=timeout_s
    )


def command_line(*words: object) -> list[str]:
    """The words of a command line; `record` gets the probe and the arming that are tested."""
    how = ["--probe", PROBE, "--arm", ARM] if words[:1] == ("record",) else []
    return [str(PROGRAM), *map(str, words[:1]), *how, *map(str, words[1:])]


def bytes_of(pages: Sequence[int] | Pages) -> list[tuple[int, int]]:
    """(address, length) of each page."""
    return [(int(page) * PAGE_BYTES, PAGE_BYTES) for page in pages]


def wait_idle(pid: int, timeout_s: float = PATIENCE_S) -> None:
    """Waits until every thread of a process sleeps: one that has answered still runs for a moment,
    and what it writes then may belong to either round."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        states = set()
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                states.add(stat.read_text().rpartition(")")[2].split()[0])
        if states <= {"S", "T", "Z"}:
            return
        time.sleep(0.001)
    raise AssertionError(f"process {pid} does not come to rest: {states}")


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Looks again and again."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


def outside_pid(wrapper: int) -> int:
    """The process below a wrapper, by the number it has here."""
    return int(Path(f"/proc/{wrapper}/task/{wrapper}/children").read_text())
