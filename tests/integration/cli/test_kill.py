"""The collector killed at any moment: the target continues as if nothing had happened.

REDIRTY_KILLS sets how often it is killed (say 100), REDIRTY_SEED repeats the moments of a run.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import random
import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from tests.support.kill_points import (
    INTERVAL,
    MOMENTS,
    SEED,
    in_window,
    spin,
    start_s,
    wait_rounds,
    wait_seized,
)
from tests.support.redirty_cli import finish, processes_with, start_redirty
from tests.support.target_state import Condition, assert_released, task_fields, tracer_of
from tests.support.waiting import wait_until
from tests.tiers import require_root
from tests.workloads.driver import Checksum, Cost, WorkloadError

KILLS = int(os.environ.get("REDIRTY_KILLS", "30"))
INJECTOR_KILLS = int(os.environ.get("REDIRTY_INJECTOR_KILLS", "12"))
# How long the default number of kills may take; beyond, on a slow machine, a few of each moment suffice.
BUDGET_S = math.inf if "REDIRTY_KILLS" in os.environ else 120
FEW = 2 * len(MOMENTS)
MOST_TRIES = 100  # of hitting the millisecond in which the target is held
# Share of the pages written in a sweep that may fault without being protected (a page that the kernel is
# moving just then); while armed all of them fault.
STRAY_FAULTS = 0.02


def armed_costs(target: Checksum, directory: Path) -> list[Cost]:
    """Measure the cost of writes while a collector runs."""
    process = start_redirty("record", "-p", target.pid, "200ms", "-o", directory)
    try:
        wait_rounds(directory, process)
        costs: list[Cost] = []

        def all_protected() -> bool:
            time.sleep(0.25)  # in the first sweep after an arm every page is protected
            costs.append(target.cost())
            return costs[-1].faults > 0.9 * costs[-1].pages

        # Without this the comparison with the cost after a kill could never fail.
        wait_until(all_protected, "a sweep in which every page is protected")
    finally:
        process.send_signal(signal.SIGTERM)
        finish(process)
    return costs


def median_ns(costs: list[Cost]) -> float:
    return statistics.median(cost.ns for cost in costs)


def test_killed_at_random_moments(target: Checksum, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"REDIRTY_SEED={SEED}, {KILLS} kills or fewer")
    unarmed = [target.cost() for _ in range(5)]
    armed = armed_costs(target, tmp_path / "armed")
    start = start_s(target, tmp_path / "start")
    before = Condition.of(target.pid)
    seen: Counter[str] = Counter()
    costs: list[Cost] = []
    gone_after: list[float] = []
    began = time.monotonic()
    number = 0
    while _goes_on(number, took_s := time.monotonic() - began, hit=seen["seized"] > 0):
        moment = (
            MOMENTS[number % len(MOMENTS)] if number < KILLS and took_s < BUDGET_S else in_window
        )
        directory = tmp_path / f"kill{number}"
        mark = f"REDIRTY_TEST_MARK={SEED}.{os.getpid()}.{number}"
        env = dict([mark.split("=", 1)])
        process = start_redirty("record", "-p", target.pid, INTERVAL, "-o", directory, env=env)
        moment(rng, target, directory, process, start)
        seen["seized"] += tracer_of(target.pid) != 0
        family = processes_with(mark)
        process.kill()
        killed = time.monotonic()
        process.wait()
        wait_all_gone(mark, family)
        gone_after.append(time.monotonic() - killed)
        finish(process)
        # Only the first of several sweeps would hit pages that are still protected.
        costs.append(target.cost())
        assert_released(target, before)
        assert costs[-1].faults <= STRAY_FAULTS * costs[-1].pages, f"kill {number}: {costs[-1]}"
        seen[cut_off(directory)] += 1
        number += 1
    result = target.stop()
    print(
        f"a write: unarmed {median_ns(unarmed):.0f} ns, armed {median_ns(armed):.0f} ns, after a kill "
        f"{median_ns(costs):.0f} ns (at most {max(cost.ns for cost in costs):.0f} ns, "
        f"{max(cost.faults for cost in costs)} of {costs[0].pages} faulted); all gone after at most "
        f"{max(gone_after) * 1e3:.0f} ms; {number} kills; start-up {start:.2f} s; {dict(seen)}; "
        f"{result.loops} loops of checks"
    )
    assert result.ok and result.errors == 0, result
    assert seen["seized"] or KILLS < FEW, "no kill hit the moment in which the target is held"


def _goes_on(number: int, took_s: float, *, hit: bool) -> bool:
    """Return whether to kill once more. On a busy machine this process may not run in the millisecond in which
    the target is held: that is tried again, so that it is hit once.
    """
    if number < FEW or (number < KILLS and took_s < BUDGET_S):
        return number < KILLS
    return not hit and FEW <= KILLS and number < MOST_TRIES


def wait_all_gone(mark: str, known: set[int]) -> None:
    """Wait until no process of redirty is left, known ones with all their descriptors closed."""
    wait_until(lambda: not processes_with(mark), "no process of redirty is left")
    wait_until(lambda: all(map(ended, known)), f"the end of {known}")


def ended(pid: int) -> bool:
    """Return whether all threads of a process have ended: its memory is gone before its descriptors are."""
    try:
        return all(state[0] in "ZX" for (state,) in task_fields(pid, "State").values())
    except (FileNotFoundError, ProcessLookupError):
        return True


def cut_off(directory: Path) -> str:
    """Check what a kill left behind: it loads, and is not complete."""
    if not (directory / "meta.json").exists():
        assert not (directory / "rounds.csv").exists()
        return "nothing"
    assert json.loads((directory / "meta.json").read_text())["complete"] is False
    counts = []
    for name in ("rounds.csv", "mappings.csv"):
        path = directory / name
        if not path.exists() or path.stat().st_size == 0:
            counts.append(0)
            continue
        table = pd.read_csv(path)
        with path.open(newline="") as file:
            assert list(table.columns) == next(csv.reader(file))
        counts.append(len(table))
        if len(table):
            # The mappings of a round are written before its own row.
            assert table["round"].is_monotonic_increasing
    if counts[0]:
        rounds = pd.read_csv(directory / "rounds.csv")
        mappings = pd.read_csv(directory / "mappings.csv")
        assert list(rounds["round"]) == list(range(len(rounds)))
        complete = mappings[mappings["round"] < len(rounds)]
        sums = complete.groupby("round")["dirty_pages"].sum().reindex(rounds["round"], fill_value=0)
        assert (sums.to_numpy() <= rounds["dirty_pages"].to_numpy()).all()
        return "rounds"
    return "no round yet"


def test_injector_killed_while_it_holds_the_target(tmp_path: Path) -> None:
    """An injector that is killed in the middle harms nobody: the target finds home by itself."""
    require_root()
    rng = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    for attempt in range(INJECTOR_KILLS):
        with Checksum(threads=2, mib=1) as victim:
            before = Condition.of(victim.pid)
            directory = tmp_path / f"injector{attempt}"
            process = start_redirty("record", "-p", victim.pid, INTERVAL, "-o", directory)
            injector = wait_seized(victim.pid, process, directory)
            spin(rng.uniform(0, 0.0015))
            held = injector and tracer_of(victim.pid) == injector
            # The process group is the collector's; the injector is in another one.
            os.killpg(process.pid, signal.SIGKILL)
            if held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(injector, signal.SIGKILL)
            process.wait()
            outcomes[_outcome(victim, before) if held else "not held any more"] += 1
            finish(process)
    print(f"REDIRTY_SEED={SEED}; injector killed in its window {INJECTOR_KILLS} times: {outcomes}")
    assert not outcomes.keys() - {"unharmed", "not held any more"}, (SEED, outcomes)


def _outcome(victim: Checksum, before: Condition) -> str:
    try:
        wait_until(lambda: not victim.alive or tracer_of(victim.pid) == 0, "the target is let go")
        time.sleep(0.05)
        if victim.alive:
            states = task_fields(victim.pid, "State")
            assert not [s for (s,) in states.values() if s[0] in "tT"], states
            after = Condition.of(victim.pid)
            result = victim.stop()
            if after.signal_mask != before.signal_mask:
                return "lives, signals blocked"
            if after.descriptors != before.descriptors:
                return "lives, descriptor left"
            return "unharmed" if result.errors == 0 else "lives, errors"
    except (WorkloadError, FileNotFoundError):
        pass
    return f"died ({victim.wait()})"
