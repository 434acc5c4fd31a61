"""The evaluation of the migration benchmark: files, verdicts, errors, tables; nothing is migrated."""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.migration import criu, table
from tests.bench.migration.__main__ import show
from tests.bench.migration.guest_criu import seized
from tests.bench.migration.guests import GuestError, progress
from tests.bench.migration.memory import address_of, length_of, zero_pages
from tests.bench.migration.move import Terms, real
from tests.bench.migration.predict import parse, written
from tests.bench.migration.results import (
    Load,
    Predicted,
    PreDump,
    Real,
    Sample,
    Settings,
    append,
    read,
    write_settings,
)
from tests.bench.migration.run import stop_line
from tests.bench.migration.stats import parse as parse_stats
from tests.bench.migration.verdicts import compare, summary, verdict
from tests.bench.migration.workloads import (
    SENT_PAGE_BYTES,
    WORKLOADS,
    critical_bandwidth,
    libraries,
)
from tests.support.redirty_cli import ProgramError

MIB = 1 << 20
SETTINGS = Settings(0.3, 120.0, 1e9, "10s", 6, "6.1.0", "QEMU 7.2", "0.1.0")
LOAD = Load("cyclic", 256 * MIB, 128 * MIB, 32.0 * MIB, None, 30.0 * MIB)
REAL = Real(
    "cyclic", 64 * MIB, "completed", 8, 4.1, 0.1, 0.05, 200 * MIB, MIB, 5, 6, 0.7, 9, 0, 0.1
)
PREDICTED = Predicted(
    "cyclic", 64 * MIB, True, 7, 4.2, 0.05, 190.0 * MIB, 4.0, 4.4, 0.04, 0.06, 3e7
)
STUCK = replace(REAL, bandwidth=24 * MIB, status="cancelled", total_s=120.1, downtime_s=None)
NEVER = Predicted(
    "cyclic", 24 * MIB, False, None, math.inf, math.inf, None, math.inf, math.inf, None, None
)


# ---- files ----


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    sample = Sample("cyclic", 64 * MIB, 0.1, 1, 2, 3, 4, None)
    dump = PreDump("cyclic", 1, 4.0, None, 10, 20, 10, 0.1, 0.2)
    append(tmp_path, [LOAD, REAL, PREDICTED])
    append(tmp_path, [NEVER, sample, STUCK, dump])
    assert read(tmp_path, Load) == [LOAD]
    assert read(tmp_path, Real) == [REAL, STUCK]
    assert read(tmp_path, Predicted) == [PREDICTED, NEVER]
    assert read(tmp_path, Sample) == [sample]
    assert read(tmp_path, PreDump) == [dump]
    assert read(tmp_path / "nothing", Load) == []


# ---- verdicts ----


def test_a_migration_is_compared_with_the_last_prediction_for_it() -> None:
    first = replace(PREDICTED, total_s=9.0)
    (row,) = compare([LOAD], [REAL], [first, NEVER, PREDICTED], 120)
    assert row.prediction == PREDICTED
    assert (row.predicted_verdict, row.happened, row.wrong, row.near) == (
        "yes",
        "yes",
        False,
        False,
    )
    assert row.total_error == pytest.approx(4.2 / REAL.total_s - 1)
    assert row.bytes_error == pytest.approx(-0.05)
    assert row.downtime_error == pytest.approx(0)


@pytest.mark.parametrize(
    ("total", "low", "high", "expected"),
    [
        (5.0, 4.0, 6.0, "yes"),
        (5.0, None, None, "yes"),
        (math.inf, math.inf, math.inf, "no"),
        (200.0, 150.0, math.inf, "no"),  # longer than the patience of a real one
        (math.inf, 50.0, math.inf, "uncertain"),
        (5.0, 4.0, 130.0, "uncertain"),
        (None, None, None, "-"),
    ],
)
def test_a_prediction_gives_a_verdict_within_the_patience(
    total: float | None, low: float | None, high: float | None, expected: str
) -> None:
    predicted = Predicted("cyclic", 1.0, total_s=total, low_total_s=low, high_total_s=high)
    assert verdict(predicted, 120) == expected


def test_wrong_verdicts_count_apart_near_the_critical_bandwidth() -> None:
    near = 33 * MIB
    reals = [
        REAL,
        STUCK,
        replace(STUCK, bandwidth=near),
        replace(STUCK, bandwidth=48 * MIB),
        replace(REAL, bandwidth=96 * MIB),
    ]
    predicted = [
        PREDICTED,
        NEVER,
        replace(PREDICTED, bandwidth=near),
        replace(PREDICTED, bandwidth=48 * MIB),
        replace(PREDICTED, bandwidth=96 * MIB, high_total_s=math.inf),
    ]
    rows = compare([LOAD], reals, predicted, 120)
    found = summary(rows)
    assert (found.wrong_far, found.wrong_near, found.uncertain_far) == (1, 1, 1)
    assert (found.migrations, found.predictions, found.compared) == (5, 5, 2)
    assert found.total_error == pytest.approx(4.2 / REAL.total_s - 1)
    shown = table.migrations(rows)
    assert [line.split()[4:7] for line in shown.splitlines()[2:]] == [
        ["no", "no", "8"], ["yes", "~", "no"], ["yes", "!", "no"], ["yes", "yes", "7"],
        ["uncertain", "yes", "7"],
    ]  # fmt: skip
    assert "wrong verdicts: 1 (goal 0)" in table.totals(found, SETTINGS)


def test_without_predictions_the_real_figures_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(tmp_path, SETTINGS)
    append(tmp_path, [LOAD, REAL, Predicted("cyclic", 64 * MIB, problem="no such command")])
    show(tmp_path)
    shown = capsys.readouterr().out
    assert "not predicted: no such command" in shown
    assert "1 migrations, 0 predicted" in shown
    assert "median error of total time - (goal 5%)" in shown


def test_passes_are_counted_as_a_prediction_counts_them() -> None:
    """QEMU syncs the dirty bitmap once more when it stops the guest, which is not a pass."""
    assert REAL.passes == 7
    assert STUCK.passes == 8


# ---- answers of redirty ----


def test_a_prediction_is_read() -> None:
    answer: dict[str, Any] = {
        "converges": True, "passes": [{}, {}], "total_s": 2.0, "downtime_s": 0.1,
        "transferred_bytes": 5, "min_bandwidth_bytes_per_s": 7, "basis": {"rounds": 3},
        "low": {"total_s": 1.5, "downtime_s": 0.1}, "high": {"total_s": None, "downtime_s": None},
    }  # fmt: skip
    predicted = parse("cyclic", 1.0, answer)
    assert (predicted.passes, predicted.total_s, predicted.low_total_s, predicted.high_total_s) == (
        2,
        2.0,
        1.5,
        math.inf,
    )
    assert json.loads(predicted.basis) == {"rounds": 3}
    assert verdict(predicted, 120) == "uncertain"
    never = {
        **answer,
        "converges": False,
        "total_s": None,
        "downtime_s": None,
        "low": {},
        "high": {},
    }
    predicted = parse("cyclic", 1.0, never)
    assert (predicted.passes, predicted.total_s, predicted.transferred_bytes) == (
        None,
        math.inf,
        None,
    )
    assert verdict(predicted, 120) == "no"


def test_the_curve_of_all_processes_is_read_between_its_points(tmp_path: Path) -> None:
    lines = ["pid,elapsed_s,unique_dirty_pages", "1,0.2,100", "1,0.4,200", "2,0.2,10", "2,0.4,20"]
    (tmp_path / "curve.csv").write_text("\n".join(lines) + "\n")
    assert written(tmp_path, 0.3) == pytest.approx(165)


# ---- answers of QEMU ----


def test_a_migration_is_read() -> None:
    ram = {
        "dirty-sync-count": 8,
        "transferred": 10,
        "downtime-bytes": 2,
        "normal": 3,
        "duplicate": 4,
    }
    answer = {
        "status": "completed",
        "total-time": 4100,
        "setup-time": 100,
        "downtime": 50,
        "ram": ram,
    }
    samples = [
        Sample("x", 1, 0.0, syncs, 0, 0, 0, e) for syncs, e in ((1, 9.0), (2, 0.5), (3, None))
    ]
    found = real(
        Terms("x", 1, 0.3, 120), answer, samples, {"writes": 7, "wrong": 0, "latest_ns": 10**9}
    )
    assert (found.total_s, found.downtime_s) == (4.1, 0.05)
    assert (found.guest_writes, found.guest_wrong, found.guest_late_s) == (7, 0, 1.0)
    assert found.expected_downtime_s == 0.5, "after the first pass"


def test_the_guests_memory_is_found_in_qemus_answers() -> None:
    listed = (
        "              Block Name    PSize              Offset               Used              Total\r\n"
        "                  pc.ram    4 KiB  0x0000000000000000 0x000000000fffe000 0x000000000fffe000\r\n"
        "                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000\r\n"
    )
    assert length_of(listed) == (256 << 20) - 8192
    assert (
        address_of("Host virtual address for 0x0 (pc.ram) is 0x7f73f0000000\r\n") == 0x7F73F0000000
    )
    with pytest.raises(GuestError):
        length_of("")
    with pytest.raises(GuestError):
        address_of("No memory is mapped at address 0x0")


def test_progress_lines_may_be_cut_off_at_both_ends() -> None:
    whole = '{"event":"progress","writes":1,"wrong":0}\n'
    console = f'rites":1}}\n{whole}[ 1.0] a line of the kernel\n{whole}{{"event":"progress","wri'
    assert [line["writes"] for line in progress(console)] == [1, 1]


# ---- guests ----


def test_the_critical_bandwidth_follows_from_the_write_curve() -> None:
    assert critical_bandwidth(lambda t: 8000 * t, 0.3) == pytest.approx(8000 * SENT_PAGE_BYTES)
    known = {name: make() for name, make in WORKLOADS.items() if name != "redis"}
    for load in known.values():
        assert load.distinct is not None
        assert 20 < critical_bandwidth(load.distinct, 0.3) / MIB < 60, load.name


def test_the_libraries_of_a_program_are_listed() -> None:
    listed = (
        "\tlinux-vdso.so.1 (0x00007fff)\n\tlibm.so.6 => /lib/libm.so.6 (0x00007f00)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n"
    )
    assert libraries(listed) == [Path("/lib/libm.so.6"), Path("/lib64/ld-linux-x86-64.so.2")]


def test_what_a_stop_takes_is_told_apart_from_what_it_sends() -> None:
    sent = [22e6, 3e6, 22.5e6, 3.1e6, 21.9e6, 2.9e6]
    exact = [0.005 + size / 2e9 for size in sent]
    assert stop_line(sent, exact, 1e9) == pytest.approx((0.005, 2e9))
    slow = [*exact]
    slow[0] += 0.03  # the first one, in a machine that has just started
    assert stop_line(sent, slow, 1e9) == pytest.approx((0.005, 2e9), rel=0.1)
    assert stop_line([3e6] * 3, [0.01] * 3, 1e9) == pytest.approx((0.007, 1e9)), "they do not tell"
    assert stop_line([1e6, 9e6], [0.02, 0.01], 1e9)[1] == 1e9


# ---- CRIU ----


def stats_file(*fields: tuple[int, int]) -> bytes:
    def varint(value: int) -> bytes:
        out = b""
        while value > 0x7F:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    dump = b"".join(varint(number << 3) + varint(value) for number, value in fields)
    entry = varint(1 << 3 | 2) + varint(len(dump)) + dump
    return struct.pack("<3I", 0x55105940, 0x57093306, len(entry)) + entry


def test_the_stats_of_a_dump_are_read() -> None:
    data = stats_file((1, 500), (2, 2_000_000), (5, 70_000), (6, 300), (7, 69_700), (99, 1))
    found = parse_stats(data)
    assert (found.frozen_s, found.pages_scanned, found.pages_skipped) == (2.0, 70_000, 300)
    assert (found.pages_written, found.memdump_s) == (69_700, 0.0)
    for bad in (b"", data[:10], data[:-1], b"x" + data[1:], data[:8] + struct.pack("<I", 0)):
        with pytest.raises(ValueError):
            parse_stats(bad)


def test_pre_dumps_are_summed_up_without_the_first() -> None:
    rows = [
        PreDump("cyclic", 0, 0.0, 200.0, 100, 100, 0, 0.1, 1.0),
        PreDump("cyclic", 1, 4.0, 103.0, 100, 200, 100, 0.1, 1.0),
        PreDump("cyclic", 2, 8.0, None, 100, 200, 100, 0.1, 1.0),
    ]
    assert "3 pre-dumps, 1 after a first one predicted; median error of their pages 3.0%" in (
        criu.totals(rows)
    )
    assert "+100.0%" in table.predumps(rows)


def test_zero_pages_of_a_process_are_counted() -> None:
    """Zero pages of a process are counted, those never touched included."""
    with mmap.mmap(-1, 6 * MIB) as memory:
        view = np.frombuffer(memory, dtype=np.uint8)
        address = view.ctypes.data
        memory[5 * MIB + 4095] = 1
        memory[0] = 1
        found = zero_pages(os.getpid(), address, len(memory))
        del view
    assert found == 6 * 256 - 2


def test_the_stop_of_the_target_is_read_from_criu_s_log() -> None:
    log = "(00.139) Enforcing tasks\n(07.259500) Seized task 183, state 1\n(07.3) Seized task 184\n"
    assert seized(log) == 7.2595
    with pytest.raises(ProgramError):
        seized("(00.1) Error")
