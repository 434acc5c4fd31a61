"""Laps of torture: rounds of random lengths, then a rest, a last round, and the comparison."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from redirty.collector.arming.methods import choose
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import Tree
from redirty.collector.tracking.rounds import Recorder

from tests.support.waiting import wait_idle
from tests.torture.check import Loss, compare
from tests.torture.mirror import Mirror
from tests.torture.moves import Moves
from tests.workloads.torture import Rest, Torture

LONGEST_ROUND_S = 0.05
_LAPS = (1, 1, 2, 3, 5, 10, 30)  # rounds in a lap: few, so that no later write repairs a loss
_LATEST = 50  # rounds until all children of a rest are traced


@dataclass(frozen=True)
class Plan:
    """seconds: for how long. arm, probe: as redirty's options. moving: page tables, all the while."""

    seconds: float
    seed: int
    arm: str = "auto"
    probe: str = "auto"
    threads: int = 6
    mib: int = 1
    directory: Path | None = None
    most_losses: int = 20
    moving: bool = False


@dataclass
class Tally:
    """What a run did. late: rounds after which programs still wrote to a log that was drained.
    compared: pages, in all laps. moved: page tables."""

    arm: str
    probe: str
    laps: int = 0
    rounds: int = 0
    writes: int = 0
    child_writes: int = 0
    changes: int = 0
    copies: int = 0
    compared: int = 0
    missed: int = 0
    spaces: int = 0
    late: int = 0
    moved: int = 0
    losses: list[Loss] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s, {self.probe} and {self.arm}: {self.laps} laps, "
            f"{self.rounds} rounds (arms), {self.writes + self.child_writes} writes "
            f"({self.child_writes} by {self.spaces - 1} other address spaces), "
            f"{self.changes} changes of mappings and children, {self.copies} pages copied, "
            f"{self.missed} seen by the scan only, {self.compared} compared, {self.moved} page tables moved, "
            f"{len(self.losses)} lost, {self.late} late logs"
        )


class Run:
    """One workload under one recorder, from start to end."""

    def __init__(self, plan: Plan, workload: Torture, recorder: Recorder, tally: Tally) -> None:
        self.plan = plan
        self.workload = workload
        self.recorder = recorder
        self.tally = tally
        self.mirror = Mirror(workload.pid)
        self.random = random.Random(plan.seed)
        self.told: set[int] = {workload.pid}
        self.moves = Moves(workload.pid) if plan.moving else None

    def begin(self) -> None:
        """Arms, and copies all that is there."""
        self.recorder.begin()
        self.mirror.begin(self._live())
        self.tally.spaces = len(self.mirror.spaces)
        if self.moves is not None:
            self.moves.begin()

    def _live(self) -> dict[int, int]:
        return {number: space.pid for number, space in self.recorder.spaces.items()}

    def end_round(self) -> bool:
        """One boundary, and the copies it asks for. True when a space was seen for the first time."""
        self.tally.late += self._late()
        result = self.recorder.end_round()
        known = len(self.mirror.spaces.keys() & self._live().keys())
        new = self.mirror.follow(result, self._live())
        self.tally.spaces += len(self.mirror.spaces) - known
        self.tally.rounds += 1
        self.tally.missed += sum(len(space.missed) for space in result.spaces)
        pids = set(self._live().values())
        for pid in pids - self.told:
            self.workload.armed(pid)
        self.told = pids
        return new

    def _late(self) -> int:
        """Whether a program wrote to the log of the round before, which was drained already."""
        tracer = self.recorder.tracer
        return int(tracer._config["used"][0][1 - tracer.epoch] != 0)

    def lap(self, deadline: float) -> None:
        """Some rounds while all goes on, then a rest and the comparison."""
        self.workload.go()
        for _ in range(self.random.choice(_LAPS)):
            if self.random.random() < 0.7:
                time.sleep(self.random.uniform(0, LONGEST_ROUND_S))
            self.end_round()
            if time.monotonic() > deadline:
                break
        with contextlib.nullcontext() if self.moves is None else self.moves.paused():
            rest = self.workload.rest()
            self._last_round(rest)
            found = compare(self.mirror)
            self.tally.moved = self.moves.tables if self.moves is not None else 0
        self.tally.laps += 1
        self.tally.compared += found.pages
        self.tally.copies = self.mirror.copies
        self.tally.losses += [_named(loss, rest) for loss in found.losses]

    def close(self) -> None:
        """Ends what moves."""
        if self.moves is not None:
            self.moves.close()

    def _last_round(self, rest: Rest) -> None:
        """The boundary after the last write; another when it took a child in, whose being armed may
        have made the kernel write to it."""
        self.tally.writes, self.tally.child_writes = rest.writes, rest.child_writes
        self.tally.changes = sum(rest.churn.values())
        for _ in range(_LATEST):
            for pid in (self.workload.pid, *rest.children):
                wait_idle(pid)
            new = self.end_round()
            if not new and set(self._live().values()) >= {self.workload.pid, *rest.children}:
                return
        raise AssertionError(f"children {rest.children} are not traced: {self._live()}")


def _named(loss: Loss, rest: Rest) -> Loss:
    """With the workload's name for its area; a child has the areas that its parent had."""
    for area in rest.areas.values():
        if area.start <= loss.address < area.end:
            return replace(loss, area=area.name)
    return loss


def torture(plan: Plan, progress: Callable[[Tally], None] = lambda tally: None) -> Tally:
    """Runs the whole plan, or until too much is lost. progress: called after every lap."""
    injector = Injector()
    try:
        arm = choose(plan.arm, injector)
        tracer = Tracer(Options(probe=plan.probe, slots=256, follow_fork=True))
        try:
            return _with(plan, tracer, arm, injector, progress)
        finally:
            tracer.close()
    finally:
        injector.close()


def _with(
    plan: Plan, tracer: Tracer, arm: str, injector: Injector, progress: Callable[[Tally], None]
) -> Tally:
    tally = Tally(arm, tracer.probe)
    # Tracepoints see the processor's writes, and one page of a huge one. The rest is left to the scan,
    # which cannot know of what left the page tables before, and with soft-dirty bits not of what was
    # written between reading and clearing them.
    log_sees_all, bits = tracer.probe != "tracepoint", arm == "soft-dirty"
    kernel_writes = 2 if log_sees_all else 0 if bits else 1
    with Torture(
        *(plan.seed, plan.threads, plan.mib, kernel_writes),
        huge=log_sees_all or not bits,
        directory=plan.directory,
    ) as workload:
        recorder = Recorder(tracer, Tree(workload.pid), arm, injector)
        run = Run(plan, workload, recorder, tally)
        try:
            run.begin()
            begun = time.monotonic()
            while tally.seconds < plan.seconds and len(tally.losses) < plan.most_losses:
                run.lap(begun + plan.seconds)
                tally.seconds = time.monotonic() - begun
                progress(tally)
            assert recorder.members.by_log_only == 0, "a child could not be armed"
        finally:
            run.close()
            recorder.close()
    return tally
