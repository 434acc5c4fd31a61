"""Tests of TLB flushes: rows of tlb.csv, their sums, and the oracle that parses the kernel's tracepoint."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from redirty.collector.analyze import load, summary
from redirty.collector.analyze import tlb as tlb_sums
from redirty.collector.recording import columns, tlb
from redirty.collector.recording.writer import RecordingWriter

from tests.support import tlb_oracle
from tests.support.factories import EVERYTHING, meta, one_round, pages


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Write a recording of two rounds."""
    made = RecordingWriter(tmp_path / "rec", meta())
    for number in range(2):
        made.add(one_round(number, log=pages(16), missed=pages(), present=pages()))
    made.close(complete=True)
    return tmp_path / "rec"


@pytest.mark.parametrize(
    ("lacking", "unknown"),
    [
        (set(), set()),
        ({"tlb_cpus"}, {("flush_tlb_mm_range", "cpus"), ("flush_tlb_mm_range", "arm_cpus")}),
    ],
)
def test_columns_without_a_probe_are_empty(
    lacking: set[str], unknown: set[tuple[str, str]]
) -> None:
    result = one_round(0, log=pages(16), missed=pages(), present=pages())
    result.stats["tlb"][1, 0] = (2, 0, 2, 0, 0, 0)
    hooks = EVERYTHING - lacking
    rows = list(tlb.rows(0, 4321, result.stats[1:2], hooks))
    table = {row[2]: dict(zip(columns.TLB, row, strict=True)) for row in rows}
    empty = {(r, c) for r, row in table.items() for c, value in row.items() if value is None}
    shares = {"task_switch", "remote_shootdown", "local_mm_shootdown"}
    always = {(r, c) for r in shares for c in ("time_s", "cpus", "arm_time_s", "arm_cpus")}
    arm = {c for c in columns.TLB if c.startswith("arm_")}
    always |= {("task_switch", c) for c in arm}
    if lacking:
        always |= {("remote_shootdown", c) for c in arm}
    assert empty == always | unknown


def test_an_older_recording_without_flushes_of_the_arm(recorded: Path) -> None:
    table = pd.read_csv(recorded / "tlb.csv")
    table[list(columns.TLB[:7])].to_csv(recorded / "tlb.csv", index=False, lineterminator="\r\n")
    loaded = load.load_tlb(recorded)
    assert tuple(loaded.columns) == columns.TLB
    assert loaded["flushes"].sum() == table["flushes"].sum()
    assert loaded["arm_flushes"].isna().all()
    found = summary.summarise(recorded)["tlb"]
    assert (found["target"]["flushes"], found["arm"]["flushes"]) == (10, None)


def test_a_report_separates_flushes_of_the_arm(recorded: Path) -> None:
    found = summary.summarise(recorded)
    assert found["tlb"] == {
        "target": {
            "flushes": 10, "pages": 14, "ranges": 8, "full_flushes": 2, "cpus": 18,
            "time_s": 4.0,
        },
        "arm": {
            "flushes": 2, "pages": 0, "ranges": 0, "full_flushes": 2, "cpus": 6,
            "time_s": 1.0,
        },
    }  # fmt: skip
    lines = summary.as_text(found).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("TLB flushes: 10, "))
    assert "8 ranged (14 pages), 2 full" in lines[at + 1]
    assert "other CPUs interrupted 18 times" in lines[at + 1]
    assert lines[at + 2].startswith("  2 more caused by arming, 1.0 s in all: ")


def test_shares_of_a_flush_are_not_added_up() -> None:
    """A flush that is local and also interrupts other CPUs counts once, though it has two rows."""
    frame = pd.DataFrame(
        [
            (0, 1, "local_mm_shootdown", 12, 48, None, 0, 12, None, 0, 0, None, 0, 0, None),
            (0, 1, "remote_send_ipi", 10, 40, None, 0, 10, None, 3, 0, None, 3, 0, None),
        ],
        columns=list(columns.TLB),
    )
    found = tlb_sums.summarise(frame, frozenset({"tlb"}))
    assert (found["target"]["flushes"], found["target"]["pages"]) == (12, 48)
    assert (found["arm"]["flushes"], found["arm"]["full_flushes"]) == (3, 3)
    assert (found["target"]["cpus"], found["arm"]["time_s"]) == (None, None)
    nothing = tlb_sums.summarise(frame[:0], frozenset({"tlb"}))["target"]
    assert (nothing["flushes"], nothing["pages"], nothing["cpus"]) == (0, 0, None)
    assert set(tlb_sums.summarise(frame[:0], frozenset())["arm"].values()) == {None}


TRACE = """# tracer: nop
#
# entries-in-buffer/entries-written: 3/3   #P:2
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
         flusher-24227   [000] ....1  1204.500000: tlb_flush: pages:-1 reason:local mm shootdown (3)
    a b-c [x] 1-24228   [001] d.h1.  1204.500001: tlb_flush: pages:7 reason:remote shootdown (1)
          <idle>-0       [001] d..2.  1204.500002: tlb_flush: pages:0 reason:flush on task switch (0)
"""


def test_tracefs_is_read_whole() -> None:
    found = tlb_oracle.parse(TRACE)
    assert [(f.tid, f.cpu, f.pages, f.reason) for f in found] == [
        (24227, 0, -1, 3),
        (24228, 1, 7, 1),
        (0, 1, 0, 0),
    ]
    assert tlb_oracle.by_reason(found, {24228, 0}) == {1: 1}, "a flush of 0 pages does not count"
    with pytest.raises(ValueError, match="the trace lacks events"):
        tlb_oracle.parse(TRACE.replace("3/3", "3/9"))
    with pytest.raises(ValueError, match="unexpected line of tracefs"):
        tlb_oracle.parse(TRACE.replace("(3)", ""))


ENTRIES = """# entries-in-buffer/entries-written: 7/7   #P:2
         flusher-134     [001] d...   105.292700: page_fault_user: address=0x7f ip=0x40 error_code=0x7
         flusher-133     [000] ....   105.292710: sys_enter: NR 11 (7f0, 1000, 0, 0, 0, 0)
         flusher-134     [001] d...   105.292747: tlb_flush: pages:1 reason:local mm shootdown (3)
         flusher-133     [000] d...   105.292800: tlb_flush: pages:4 reason:local mm shootdown (3)
         flusher-133     [000] d...   105.292950: tlb_flush: pages:4 reason:remote ipi send (4)
         flusher-133     [000] d...   105.292960: page_fault_kernel: address=0x7f ip=0x81 error_code=0x3
         flusher-133     [000] d...   105.292970: tlb_flush: pages:1 reason:local mm shootdown (3)
"""


def test_tracefs_shows_which_flushes_faults_caused() -> None:
    found = tlb_oracle.parse(ENTRIES)
    assert [(f.tid, f.fault) for f in found] == [
        (134, True),
        (133, False),
        (133, False),
        (133, True),
    ]
