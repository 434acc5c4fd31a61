"""Page tables on this machine's kernel: walked, and reallocated in place while the target runs.

Moves between nodes are tested in tests/vm.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.errors import ArmError, RedirtyError
from redirty.collector.linux import numa
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.smaps import detailed
from redirty.collector.pageset import page_numbers
from redirty.collector.pagetables.planner import StepPlanner, plan
from redirty.collector.pagetables.preconditions import require_movable
from redirty.collector.pagetables.relocation import (
    Relocation,
    RelocationLimits,
    RelocationTarget,
)
from redirty.collector.pagetables.walker import Walker

from tests.support.mapped_program import PAGE, Mapped, wrong_pages
from tests.support.page_table_entries import changed_by_a_move
from tests.support.redirty_cli import processes_with, run_redirty
from tests.support.relocation_loop import Relocator
from tests.support.stepped_rounds import LiveRounds
from tests.support.target_state import Condition, assert_released, debugged
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle, wait_until
from tests.tiers import require
from tests.workloads.driver import Checksum

KILLS = int(os.environ.get("REDIRTY_KILLS", "10"))
MIB = int(os.environ.get("REDIRTY_TABLES_MIB", "100"))
ROUNDS = 2 * int(os.environ.get("REDIRTY_TABLES_TIMES", "2"))
SEED = int(os.environ.get("REDIRTY_SEED", time.time_ns()))


@pytest.fixture(scope="module")
def walker(tracing: None) -> Iterator[Walker]:
    opened = Walker(numa.read_nodes().highest)
    yield opened
    opened.close()


def vm_pte_pages(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmPTE:")[1].split()[0]) // 4


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_the_walk_finds_what_the_kernel_counts(walker: Walker, kind: str) -> None:
    with Mapped(kind, 40) as target:
        wait_idle(target.pid)  # its other thread falls asleep
        tables = walker.walk(target.pid)
        # one in reserve for each huge page, where the C library's memory has some
        walked = (tables.level < tables.top).sum() + len(tables.huge)
        assert walked == vm_pte_pages(target.pid)
        leaves = set(tables.address[tables.leaves].tolist())
        first = target.address >> 21 << 21
        assert leaves >= set(range(first, target.address + (40 << 20), 1 << 21))


def test_the_command_reports_the_walk(tracing: None) -> None:
    with Mapped("private", 64) as target:
        done = run_redirty("pagetables", "-p", target.pid, "--sample", "200ms", "--json")
        assert done.code == 0, done
        answer = json.loads(done.out)
        assert answer["source"] == "walk", answer["reason"]
        (process,) = answer["processes"]
        pages = {row["level"]: row["pages"] for row in process["levels"]}
        assert pages["pgd"] == 1
        assert sum(pages.values()) - 1 + process["huge_pages"] == process["counted_pages"]
        inside = [r for r in process["mappings"] if int(r["start"], 16) == target.address]
        assert not inside or inside[0]["mapping_class"] == "anon_private"
        assert sum(row["pages"] for row in process["mappings"]) == pages["pte"]
        assert max(row["pages"] for row in process["mappings"]) >= 31
        text = run_redirty("pagetables", "-p", target.pid, "--sample", "50ms")
        assert text.code == 0
        assert "walked by BPF" in text.out
        assert f"process {target.pid} (" in text.out


def test_refusals_are_one_line(tracing: None) -> None:
    nodes = numa.read_nodes()
    missing = max(nodes.online) + 1
    with Mapped("private", 1) as target:
        cases: list[tuple[list[object], int, str]] = [
            (
                ["--to-node", missing],
                1,
                f"--to-node {missing}: no such node; nodes with memory are",
            ),
            (["--yes"], 2, "--to-node"),
            (["--to-node", 0, "--max-pause", "20"], 2, "--max-pause: time '20' has no unit"),
            (["--sample", "0"], 2, "--sample"),
        ]
        if len(nodes.with_memory) == 1:
            cases.append((["--to-node", nodes.with_memory[0], "--yes"], 1, "only one node"))
        for words, code, expected in cases:
            done = run_redirty("pagetables", "-p", target.pid, *words)
            assert done.code == code, done
            assert len(done.lines) == 1, done
            assert expected in done.lines[0]
        assert target.wrong() == 0
    ended = run_redirty("pagetables", "-p", target.pid)
    assert (ended.code, len(ended.lines)) == (1, 1), ended
    command = run_redirty("pagetables", "--", "true")
    assert (command.code, len(command.lines)) == (2, 1), command


def test_a_debugged_process_is_refused_before_anything_is_done() -> None:
    require(os.geteuid() == 0, "needs root")
    with Mapped("private", 1) as target:
        with (
            debugged(target.pid),
            pytest.raises(RedirtyError, match="already traced by process"),
        ):
            require_movable(target.pid, 0)
        require_movable(target.pid, 0)


@pytest.fixture
def relocator_of(tracing: None) -> Iterator[list[Relocator]]:
    made: list[Relocator] = []
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", ["private", "shared", "file"])
def test_all_tables_are_reallocated_and_nothing_else_changes(
    relocator_of: list[Relocator], kind: str, tmp_path: Path
) -> None:
    with Mapped(kind, MIB, str(tmp_path / "file")) as target:
        maps = detailed(target.pid)
        relocator = Relocator(target.pid, 16)
        relocator_of.append(relocator)
        longest_s, tables = 0.0, 0
        for _ in range(ROUNDS):
            moved, of, longest = relocator.round()
            # a page that was freed may be the next one's again
            assert of >= MIB // 2
            assert moved >= 0.9 * of
            longest_s, tables = max(longest_s, longest), tables + moved
        print(
            f"{tables} tables of {MIB} MiB reallocated in {ROUNDS} rounds: downtime {relocator.stopped_s:.3f} s "
            f"in all, {longest_s * 1e3:.1f} ms at most; {dict(relocator.refused)}"
        )
        assert detailed(target.pid) == maps
        assert target.wrong() == 0
        assert target.write(5) == 0


@pytest.mark.parametrize("kind", ["private", "shared", "file"])
def test_every_bit_of_every_entry_stays(
    relocator_of: list[Relocator], kind: str, tmp_path: Path
) -> None:
    """Accessed and dirty bits survive a move: earlier writes reach the file, used pages are kept."""
    with Mapped(kind, 12, str(tmp_path / "file")) as target:
        relocator = Relocator(target.pid, 4)
        relocator_of.append(relocator)
        wrong, bits = changed_by_a_move(relocator.walker, target, relocator.round)
        assert wrong == []
        assert bits["present"] == 12 << 8
        assert bits["accessed"] >= bits["present"] // 3
        assert bits["not accessed"] >= bits["present"] // 3
        assert bits["dirty"] >= bits["present"] // 3
        assert kind != "file" or bits["not dirty"] >= bits["present"] // 3
    if kind == "file":
        assert wrong_pages((tmp_path / "file").read_bytes(), 0) == 0


class Observed:
    """An observer of steps that counts them."""

    def __init__(self) -> None:
        self.started = self.ended = 0
        self.reports: list[tuple[int, int]] = []

    def step_started(self) -> None:
        assert self.started == self.ended
        self.started += 1

    def step_ended(self) -> None:
        self.ended += 1

    def progress(self, done: int, total: int) -> None:
        assert self.ended == self.started
        self.reports.append((done, total))


def test_a_relocation_runs_its_steps_and_reports_them(walker: Walker) -> None:
    """All memory is attributed to node 1 here, so that every table has to move to node 0, in vain."""
    frames = np.array([0, 1 << 40], np.uint64)
    nodes = NumaNodes((0, 1), (0, 1), {}, frames[:1], frames[1:], np.ones(1, np.int64))
    with Mapped("private", 40) as target:
        maps = detailed(target.pid)
        observed = Observed()
        limits = RelocationLimits(max_pause_s=0.02)
        result = Relocation(RelocationTarget(target.pid, walker, nodes), 0, limits, observed).run()
        assert detailed(target.pid) == maps
        assert target.wrong() == 0
    assert result.steps >= 2
    assert result.moved >= 20
    assert observed.started == observed.ended >= result.steps == len(observed.reports)
    assert observed.reports[0][0] <= observed.reports[0][1]
    assert 0 < result.moves_s <= result.stopped_s <= result.took_s
    assert result.longest_s <= result.stopped_s
    assert set(result.before) == set(result.after) == {1}
    assert result.kept["kept changing, or the node has no free memory"] >= 20


def test_a_program_that_checks_itself_notices_nothing(relocator_of: list[Relocator]) -> None:
    """Moves do not disturb the registers, system calls and memory of a program that verifies them."""
    with Checksum(threads=4, mib=8) as target:
        before = Condition.of(target.pid)
        maps = detailed(target.pid)
        relocator = Relocator(target.pid, 8)
        relocator_of.append(relocator)
        end = time.monotonic() + 5
        moved = rounds = 0
        # So many checks as are to notice nothing, however busy the machine is.
        while time.monotonic() < end or target.status().loops <= 10:
            found, _, _ = relocator.round()
            moved, rounds = moved + found, rounds + 1
        assert moved > 10 * rounds
        assert_released(target, before)
        assert detailed(target.pid) == maps
        result = target.stop()
        assert result.ok, result
        assert result.loops > 10


def test_what_a_recording_has_registered_stays(relocator_of: list[Relocator]) -> None:
    """Memory under a recording is not moved, not even by a plan made before the recording started.

    Moved memory would no longer be registered, and writes to it would be lost.
    """
    require(arm_method() == "uffd", "registers nothing here")
    with Mapped("private", 8) as target, LiveRounds(target.pid) as rounds:
        relocator = Relocator(target.pid, 1)
        relocator_of.append(relocator)
        inside = range(target.address, target.address + (8 << 20) - (2 << 20))
        regions = np.arange(inside.start + (2 << 20) - 1 >> 21 << 21, inside.stop, 2 << 20)
        before = StepPlanner(plan(regions.astype(np.uint64), detailed(target.pid))).next(1)
        assert before is not None
        rounds.begin()
        with pytest.raises(ArmError, match="a recording of it has started"):
            relocator.injector.relocate(target.pid, 0, before.runs, before.segments, 2.0)
        now = plan(regions.astype(np.uint64), detailed(target.pid))
        assert now.kept == {"registered with a userfaultfd": len(regions)}
        assert target.write(3) == 0
        pages = page_numbers(rounds.round_of(target.pid).dirty)
        first = target.address // PAGE
        assert set(range(first, first + (8 << 8))) <= set(pages.tolist())


@pytest.mark.parametrize("also_injector", [False, True])
def test_killed_at_random_moments(tracing: None, also_injector: bool, tmp_path: Path) -> None:
    """After kill -9 of the mover memory is in its place, and the target continues.

    With also_injector all its processes are killed, which no other program could survive either; of
    those kills the outcome is only counted.
    """
    rng = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    held = 0
    stderr = tmp_path / "stderr"
    target = Checksum(threads=3, mib=4)
    try:
        before = Condition.of(target.pid)
        number = 0
        # On a busy machine it may take more kills until one hits a stopped target.
        while number < KILLS or (not held and not also_injector and number < 10 * KILLS):
            number += 1
            mark = f"REDIRTY_TEST_MARK={SEED}.{os.getpid()}.{also_injector}.{number}"
            words = [sys.executable, "-m", "tests.support.relocation_loop", str(target.pid), "4"]
            with stderr.open("a") as err:
                mover = subprocess.Popen(
                    words,
                    stdout=subprocess.PIPE,
                    stderr=err,
                    text=True,
                    env=os.environ | dict([mark.split("=", 1)]),
                )
            assert mover.stdout is not None
            mover.stdout.readline()
            time.sleep(rng.uniform(0, 0.2))
            family = processes_with(mark)
            held += _traced(target.pid)
            for pid in family if also_injector else [mover.pid]:
                with contextlib.suppress(ProcessLookupError):  # the process of a step has ended
                    os.kill(pid, 9)
            mover.wait()
            _wait_gone(mark)
            outcome = _outcome(target, before)
            outcomes[outcome] += 1
            if also_injector and outcome != "unharmed":
                target.__exit__(None, None, None)
                target = Checksum(threads=3, mib=4)
                before = Condition.of(target.pid)
        print(
            f"REDIRTY_SEED={SEED}; {number} kills, {held} while the target was stopped: {outcomes}"
        )
        if not also_injector:
            assert outcomes == {"unharmed": number}
            assert held
            result = target.stop()
            assert result.errors == 0, result
        assert stderr.read_text() == ""
    finally:
        target.__exit__(None, None, None)


def _wait_gone(mark: str) -> None:
    wait_until(lambda: not processes_with(mark), "all its processes have ended")


def _traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


def _outcome(target: Checksum, before: Condition) -> str:
    wait_until(lambda: not target.alive or not _traced(target.pid), "the target is released")
    if not target.alive:
        return "died"
    if any(m.perms == "rwxp" for m in detailed(target.pid)):
        return "a mapping left"
    time.sleep(0.02)
    assert_released(target, before)
    return "unharmed" if target.status().errors == 0 else "errors"


def test_a_stopped_target_stays_stopped(relocator_of: list[Relocator]) -> None:
    require(os.geteuid() == 0, "needs root")
    with Mapped("private", 8) as target:
        os.kill(target.pid, 19)
        wait_until(
            lambda: "T (stopped)" in Path(f"/proc/{target.pid}/status").read_text(), "stopped"
        )
        relocator = Relocator(target.pid, 4)
        relocator_of.append(relocator)
        moved, _, _ = relocator.round()
        assert moved
        wait_until(
            lambda: "T (stopped)" in Path(f"/proc/{target.pid}/status").read_text(), "stopped"
        )
        os.kill(target.pid, 18)
        assert target.wrong() == 0
