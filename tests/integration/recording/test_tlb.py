"""TLB flushes: a program that makes a known number of them, and the kernel's own counts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from redirty.collector.bpf import abi
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.recording.writer import tlb_totals

from tests.support.stepped_rounds import LiveRounds
from tests.support.tlb_oracle import (
    LOCAL_MM_SHOOTDOWN,
    LOCAL_SHOOTDOWN,
    REMOTE_SEND_IPI,
    REMOTE_SHOOTDOWN,
    Flush,
    by_reason,
    ceiling,
    interrupts,
    traced,
)
from tests.tiers import require
from tests.workloads.driver import Flushed, Flusher

Calls = Sequence[tuple[str, int, int]]
"""Method, number of calls, and pages of each call."""
EVERY_CALL = [("mprotect", 30, 4), ("dontneed", 20, 7), ("munmap", 10, 50)]


@dataclass(frozen=True)
class Seen:
    """Flushes of a round in which only these calls flushed, from one processor, and of the arm at its start.

    The first write after the arm also flushes where the kernel copies the page then.

    Attributes:
        own, arm: (8,) abi.TLB by reason.
        asked: interrupts of all other processors.
        cpus: number of other processors.
        tids: the program's threads.
    """

    own: npt.NDArray[np.void]
    arm: npt.NDArray[np.void]
    truth: list[Flushed]
    flushes: list[Flush]
    asked: int
    cpus: int
    tids: set[int]

    @property
    def true_flushes(self) -> int:
        return sum(flushed.flushes for flushed in self.truth)

    @property
    def true_pages(self) -> int:
        return sum(flushed.pages for flushed in self.truth)

    @property
    def by_faults(self) -> int:
        """Count how often a page fault of the program flushed its page, by the kernel's tracepoint."""
        mine = [flush for flush in self.flushes if flush.fault and flush.tid in self.tids]
        assert all(flush.pages == 1 for flush in mine if flush.reason == LOCAL_MM_SHOOTDOWN)
        return sum(flush.reason == LOCAL_MM_SHOOTDOWN for flush in mine)

    @property
    def by_others(self) -> int:
        """Count how often another process interrupted processors, or this process did for its own memory."""
        asking = [flush for flush in self.flushes if flush.reason == REMOTE_SEND_IPI]
        ours = by_reason(asking, {*self.tids})[REMOTE_SEND_IPI]
        return len(asking) - ours - int(self.arm[REMOTE_SEND_IPI]["flushes"])


@pytest.fixture
def one_cpu() -> Iterator[int]:
    """Pin this process to the first processor; return the number of others, which the target's threads keep busy."""
    mine = os.sched_getaffinity(0)
    require(len(mine) >= 2, "needs two processors")
    os.sched_setaffinity(0, {min(mine)})
    yield len(mine) - 1
    os.sched_setaffinity(0, mine)


def run(tracer: Tracer, others: int, calls: Calls, pageout: Path | None = None) -> Seen:
    """Run the calls in a round of their own, after an arm that has something to protect.

    Then a file's pages are unmapped by reclaim.
    """
    # Without rseq: the kernel writes to that area whenever it has preempted a thread.
    everywhere = ("env", "GLIBC_TUNABLES=glibc.pthread.rseq=0", "taskset", "-c", f"0-{others}")
    with (
        Flusher(16, others, everywhere) as program,
        LiveRounds(program.pid, tracer=tracer) as live,
    ):
        live.begin()
        program.touch()
        tids = {int(task.name) for task in Path(f"/proc/{program.pid}/task").iterdir()}
        with traced(tids) as so_far:
            before = interrupts()
            live.end_round()
            program.touch()  # so that no thread has a page left whose first write is in the middle
            truth = [program.flush(*call) for call in calls]
            if pageout:
                program.pageout(pageout)
            after = interrupts()
            flushes = so_far()
        stats = live.round_of(program.pid).stats[0]
        asked = sum(after) - sum(before) - (after[program.cpu] - before[program.cpu])
    return Seen(stats["tlb"], stats["arm_tlb"], truth, flushes, asked, others, tids)


def timed(tracer: Tracer) -> bool:
    """Return whether whole flushes are traced, and not only the tracepoint's parts of them."""
    return tracer.probe != "tracepoint"


def test_what_is_attached(tracer: Tracer) -> None:
    assert "tlb" in tracer.hooks
    whole = {"tlb_time", "tlb_batch_time", "tlb_cpus"}
    assert tracer.hooks & whole == (whole if timed(tracer) else set())


@pytest.mark.parametrize("how", ["mprotect", "dontneed", "munmap"])
@pytest.mark.parametrize("pages", [1, 9, 100])
def test_each_flush_is_counted_once(tracer: Tracer, one_cpu: int, how: str, pages: int) -> None:
    seen = run(tracer, one_cpu, [(how, 12, pages)])
    assert (seen.true_flushes, seen.true_pages) == (12, 12 * pages)
    begun, waited_s = tlb_totals(seen.own[np.newaxis], tracer.hooks)
    assert begun == seen.true_flushes + seen.by_faults, seen.own.tolist()
    full = seen.true_flushes if pages > ceiling() else 0
    if timed(tracer):
        row = seen.own[abi.TLB_MM_RANGE]
        assert (row["flushes"], row["ranges"]) == (begun, begun)
        assert row["pages"] == seen.true_pages + seen.by_faults
        assert row["full_flushes"] == full
        assert row["ns"] > 0 and waited_s == pytest.approx(row["ns"] / 1e9)
    else:
        row = seen.own[LOCAL_MM_SHOOTDOWN]
        assert (row["full_flushes"], row["ranges"]) == (full, begun - full)
        assert row["pages"] == seen.by_faults + (0 if full else seen.true_pages)
        assert waited_s is None


def test_pages_unmapped_by_reclaim_are_flushed_together(
    tracer: Tracer, one_cpu: int, tmp_path: Path
) -> None:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    require(kind != "tmpfs", "needs a temporary directory on a real file system (TMPDIR)")
    file = tmp_path / "file"
    with file.open("wb") as written:
        written.write(b"x" * 64 * 4096)
        os.fsync(written.fileno())
    # Another program may have a reference to the pages just then; and when the target's threads are preempted
    # on the other processors, none is interrupted, and each page is flushed by itself.
    for _ in range(20):
        seen = run(tracer, one_cpu, [], file)
        told = by_reason(seen.flushes, seen.tids)
        assert seen.own[LOCAL_SHOOTDOWN]["flushes"] == told[LOCAL_SHOOTDOWN]
        if not timed(tracer):
            if told[LOCAL_SHOOTDOWN]:
                break
            continue
        whole = seen.own[abi.TLB_BATCH]
        assert whole["flushes"] == whole["full_flushes"]
        assert (whole["pages"], whole["ranges"]) == (0, 0), "what it names is no range"
        if whole["flushes"] and whole["cpus"]:
            assert whole["ns"] > 0
            assert told[LOCAL_SHOOTDOWN] <= whole["flushes"]
            break
    else:
        raise AssertionError("reclaim flushed nothing")


def test_the_arm_is_apart(tracer: Tracer, one_cpu: int) -> None:
    """Rounds in which the target does not flush have flushes of the arm only.

    An arm does not interrupt another processor when the target's thread is preempted at that time: tried again.
    """
    for _ in range(50):
        seen = run(tracer, one_cpu, [])
        begun, _ = tlb_totals(seen.own[np.newaxis], tracer.hooks)
        assert begun == seen.by_faults, seen.own.tolist()
        arm = seen.arm[abi.TLB_MM_RANGE if timed(tracer) else REMOTE_SEND_IPI]
        if timed(tracer):
            assert arm["flushes"] >= 1 and arm["ns"] > 0
        else:
            assert arm["flushes"] == arm["ranges"] + arm["full_flushes"]
        if arm["cpus"] if timed(tracer) else arm["flushes"]:
            break
    else:
        raise AssertionError("no arm interrupted the thread that spins")


def test_the_tracepoint_by_tracefs_agrees(tracer: Tracer, one_cpu: int) -> None:
    seen = run(tracer, one_cpu, EVERY_CALL)
    told = by_reason(seen.flushes, seen.tids)
    for reason in (LOCAL_SHOOTDOWN, LOCAL_MM_SHOOTDOWN, REMOTE_SEND_IPI):
        assert seen.own[reason]["flushes"] == told[reason], abi.TLB_REASON_NAMES[reason]
    answered = seen.own[REMOTE_SHOOTDOWN]["flushes"] + seen.arm[REMOTE_SHOOTDOWN]["flushes"]
    assert answered == told[REMOTE_SHOOTDOWN]
    if timed(tracer):
        assert seen.own[REMOTE_SEND_IPI]["flushes"] <= seen.own[abi.TLB_MM_RANGE]["flushes"]
    collector = by_reason(seen.flushes, {os.getpid()})
    assert seen.arm[REMOTE_SEND_IPI]["flushes"] <= collector[REMOTE_SEND_IPI]
    for name in ("pages", "full_flushes"):
        own = [f.pages for f in seen.flushes if f.tid in seen.tids and f.reason == REMOTE_SEND_IPI]
        expected = sum(p for p in own if p >= 0) if name == "pages" else own.count(-1)
        assert seen.own[REMOTE_SEND_IPI][name] == expected


def test_interrupts_are_explained(tracer: Tracer, one_cpu: int) -> None:
    """The line TLB of /proc/interrupts, which counts for the whole machine, is explained.

    Interrupts that are neither the target's nor the arm's were requested by other processes, and are no more than
    those can have caused.
    """
    seen = run(tracer, one_cpu, EVERY_CALL)
    assert seen.true_flushes == 60
    calls = seen.true_flushes + seen.by_faults
    if timed(tracer):
        own, arm = (int(row[abi.TLB_MM_RANGE]["cpus"]) for row in (seen.own, seen.arm))
        most = calls * seen.cpus
    else:
        # Parts that were carried out, including those of the arm; one that found nothing left to do is an
        # interrupt only.
        own, arm = (int(row[REMOTE_SHOOTDOWN]["flushes"]) for row in (seen.own, seen.arm))
        assert arm == 0, "nobody knows who asked"
        most = (calls + int(seen.arm[REMOTE_SEND_IPI]["flushes"])) * seen.cpus
    counts = {"own": own, "arm": arm, "asked": seen.asked, "others' requests": seen.by_others}
    assert 0 < own <= most, counts
    assert own + arm <= seen.asked, counts
    if timed(tracer):
        # A spinning thread faults once after the arm. While its processor runs a BPF program of that fault,
        # at entry or at return, the kernel runs no other one there by kprobe: an interrupt is not counted
        # then.
        unseen = 2 * seen.cpus if tracer.probe == "kprobe" else 0
        assert seen.asked <= own + arm + unseen + seen.by_others * seen.cpus, counts
