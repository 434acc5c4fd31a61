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

MAX_ROUND_S = 0.05
_LAPS = (1, 1, 2, 3, 5, 10, 30)  # rounds in a lap: few, so that no later write hides a loss
_MAX_REST_ROUNDS = 50  # until all children of a rest are traced


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    Attributes:
        seconds: how long it lasts.
        arm: as redirty's option.
        probe: as redirty's option.
        moving: page tables are relocated all the while.
    """

    seconds: float
    seed: int
    arm: str = "auto"
    probe: str = "auto"
    threads: int = 6
    mib: int = 1
    directory: Path | None = None
    max_losses: int = 20
    moving: bool = False


@dataclass
class Tally:
    """Results of a run.

    Attributes:
        late: rounds after which programs still wrote to a log that was drained.
        compared: pages compared, over all laps.
        moved: page tables relocated.
    """

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
            f"{self.missed} found by the scan only,  {self.compared} compared, {self.moved} page tables moved, "
            f"{len(self.losses)} lost, {self.late} late logs"
        )


class Run:
    """A workload under a recorder, from start to end."""

    def __init__(self, plan: Plan, workload: Torture, recorder: Recorder, tally: Tally) -> None:
        self.plan = plan
        self.workload = workload
        self.recorder = recorder
        self.tally = tally
        self.mirror = Mirror(workload.pid)
        self.random = random.Random(plan.seed)
        self.notified: set[int] = {workload.pid}
        self.moves = Moves(workload.pid) if plan.moving else None

    def start(self) -> None:
        """Arm, and copy everything present."""
        self.recorder.begin()
        self.mirror.start(self._live())
        self.tally.spaces = len(self.mirror.spaces)
        if self.moves is not None:
            self.moves.start()

    def _live(self) -> dict[int, int]:
        return {number: space.pid for number, space in self.recorder.spaces.items()}

    def end_round(self) -> bool:
        """End a round and copy what it reports; return True if an address space was seen for the first time."""
        self.tally.late += self._late()
        result = self.recorder.end_round()
        known = len(self.mirror.spaces.keys() & self._live().keys())
        new = self.mirror.sync(result, self._live())
        self.tally.spaces += len(self.mirror.spaces) - known
        self.tally.rounds += 1
        self.tally.missed += sum(len(space.missed) for space in result.spaces)
        pids = set(self._live().values())
        for pid in pids - self.notified:
            self.workload.armed(pid)
        self.notified = pids
        return new

    def _late(self) -> int:
        """Return whether a program wrote to the previous round's log after it was drained."""
        tracer = self.recorder.tracer
        return int(tracer._config["used"][0][1 - tracer.epoch] != 0)

    def lap(self, deadline: float) -> None:
        """Run some rounds while everything changes, then a rest and the comparison."""
        self.workload.go()
        for _ in range(self.random.choice(_LAPS)):
            if self.random.random() < 0.7:
                time.sleep(self.random.uniform(0, MAX_ROUND_S))
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
        """Stop relocating page tables."""
        if self.moves is not None:
            self.moves.close()

    def _last_round(self, rest: Rest) -> None:
        """End the round of the last write, and another one if it took in a child: the kernel may have written to
        the child while it was armed.
        """
        self.tally.writes, self.tally.child_writes = rest.writes, rest.child_writes
        self.tally.changes = sum(rest.churn.values())
        for _ in range(_MAX_REST_ROUNDS):
            for pid in (self.workload.pid, *rest.children):
                wait_idle(pid)
            new = self.end_round()
            if not new and set(self._live().values()) >= {self.workload.pid, *rest.children}:
                return
        raise AssertionError(f"children {rest.children} are not traced: {self._live()}")


def _named(loss: Loss, rest: Rest) -> Loss:
    """Return the loss with the workload's name for its area; a child has its parent's areas."""
    for area in rest.areas.values():
        if area.start <= loss.address < area.end:
            return replace(loss, area=area.name)
    return loss


def torture(plan: Plan, progress: Callable[[Tally], None] = lambda tally: None) -> Tally:
    """Run the whole plan, or until too much is lost. progress: called after every lap."""
    injector = Injector()
    try:
        arm = choose(plan.arm, injector)
        tracer = Tracer(Options(probe=plan.probe, slots=256, follow_fork=True))
        try:
            return _torture(plan, tracer, arm, injector, progress)
        finally:
            tracer.close()
    finally:
        injector.close()


def _torture(
    plan: Plan, tracer: Tracer, arm: str, injector: Injector, progress: Callable[[Tally], None]
) -> Tally:
    tally = Tally(arm, tracer.probe)
    # Tracepoints see only the processor's writes, and one page of a huge one. The rest is left to the scan,
    # which misses what left the page tables before it, and with soft-dirty bits what was
    # written between reading and clearing them.
    log_sees_all, bits = tracer.probe != "tracepoint", arm == "soft-dirty"
    kernel_writes = 2 if log_sees_all else 0 if bits else 1
    with Torture(
        plan.seed,
        plan.threads,
        plan.mib,
        kernel_writes,
        huge=log_sees_all or not bits,
        directory=plan.directory,
    ) as workload:
        recorder = Recorder(tracer, Tree(workload.pid), arm, injector)
        run = Run(plan, workload, recorder, tally)
        try:
            run.start()
            started = time.monotonic()
            while tally.seconds < plan.seconds and len(tally.losses) < plan.max_losses:
                run.lap(started + plan.seconds)
                tally.seconds = time.monotonic() - started
                progress(tally)
            assert recorder.members.by_log_only == 0, "a child could not be armed"
        finally:
            run.close()
            recorder.close()
    return tally
