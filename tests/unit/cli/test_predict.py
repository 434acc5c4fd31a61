"""Tests of redirty predict on recordings: its answers, its JSON, and its errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from redirty.collector.analyze import ascii_plot
from redirty.collector.bpf import abi
from redirty.collector.cli import main as cli
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.pageset import PAGE_SIZE, from_ranges
from redirty.collector.recording.writer import RecordingWriter
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.factories import meta

PAGE = PAGE_SIZE
MIB = 1 << 20
PRESENT = 20_000
AREA, RATE = 4000, 8000.0
_EDGES_S = abi.hist_edges_ns() / 1e9
FIRST = 0x7F0000000 << 12

# Keys that users rely on.
PROMISED = {
    "converges", "passes", "total_s", "downtime_s", "transferred_bytes",
    "min_bandwidth_bytes_per_s", "low", "high", "policy", "basis",
}  # fmt: skip


def ranges(*pairs: tuple[int, int]) -> Any:
    a = np.array(pairs, np.uint64).reshape(-1, 2)
    return from_ranges(a[:, 0].copy(), a[:, 1].copy())


def cyclic_round(number: int, duration_s: float, rate: float, area: int = AREA) -> Round:
    """Make a round of a cyclic writer over an area of a mapping of 20,000 pages, all present."""
    base = FIRST >> 12
    mappings = Mappings.of((Mapping(FIRST, FIRST + PRESENT * PAGE, "rw-p", ""),))
    start = round(number * duration_s * rate) % area if rate else 0
    count = min(area, round(duration_s * rate))
    parts = [(base + start, base + min(start + count, area))]
    if start + count > area:
        parts.insert(0, (base, base + start + count - area))
    dirty = ranges(*parts) if count else ranges()
    present = ranges((base, base + PRESENT))
    stats = np.zeros(2, abi.STATS)
    reached = np.minimum(np.floor(_EDGES_S * rate), count).astype(np.uint64)
    stats["hist"][1] = np.diff(reached, prepend=np.uint64(0))
    stats["hist"][1, -1] = 0
    space = SpaceRound(
        pid=77, space=77, mappings=mappings, present=present, log=dirty, missed=ranges(),
        dirty=dirty, redirtied=dirty, scanned_pages=count, stats=stats[1:].copy(),
    )  # fmt: skip
    return Round(number, number * duration_s, duration_s, 0.0, (space,), stats)


def record(directory: Path, rounds: int, rate: float = RATE, complete: bool = True) -> Path:
    made = RecordingWriter(directory, meta())
    for number in range(rounds):
        made.add(cyclic_round(number, 0.25, rate))
    made.close(complete=complete)
    return directory


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("predict") / "rec", 24)


def predicted(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert cli.main(["predict", *map(str, words), "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(shown.out, parse_constant=no_constant)
    return found


def test_a_link_that_is_fast_enough(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Passes over a cyclic writer, min(S, P t), follow the closed form.

    20,000 pages, then what is written, each time less by rate / bandwidth, except for what was written before
    the pass reached it. In the first pass its first fifth leaves all, the rest less and less, linearly to
    nothing at the end. What is unchanged is written again at the same rate, and sent after all where that
    happens before the second pass reaches it.
    """
    pages_per_s = 4 * RATE
    found = predicted(
        capsys, recording, "--bandwidth", f"{pages_per_s * PAGE:.0f}B", "--downtime", "100ms"
    )
    assert found.keys() >= PROMISED
    assert (found["converges"], found["verdict"]) == (True, "converges")
    first = PRESENT / pages_per_s
    assert AREA / RATE / first == pytest.approx(0.8)
    at = (np.arange(1000) + 0.5) / 1000  # of the memory, from its start
    same = np.maximum(at - 0.2, 0) / 0.8
    second = 0.0
    for _ in range(20):  # what it sends again makes it longer
        again = np.minimum(RATE * second / pages_per_s / AREA * at, 1)
        sent = 1 - same * (1 - again)
        second = AREA * sent.mean()
    third = RATE * second / pages_per_s * (1 - (np.cumsum(sent) / sent.sum()).mean())
    expected, left = [PRESENT, second, third], third
    assert RATE * second / pages_per_s < pages_per_s * 0.1
    assert [p["bytes"] / PAGE for p in found["passes"]] == pytest.approx(expected, rel=0.02)
    assert [p["pass"] for p in found["passes"]] == list(range(1, len(expected) + 1))
    assert found["total_s"] == pytest.approx(sum(expected) / pages_per_s, rel=0.01)
    assert found["downtime_s"] == pytest.approx(left / pages_per_s, rel=0.02)
    assert found["transferred_bytes"] == pytest.approx(sum(expected) * PAGE, rel=0.01)
    assert found["min_bandwidth_bytes_per_s"] == pytest.approx(RATE * PAGE, rel=0.02)
    for key in ("total_s", "downtime_s", "transferred_bytes"):
        assert found["low"][key] <= found[key] <= found["high"][key]
    basis = found["basis"]
    assert (basis["rounds"], basis["seconds"], basis["present_pages"]) == (24, 6.0, PRESENT)
    assert found["mapping_classes"]["anon_private"]["share"] == 1.0


def test_a_link_that_is_too_slow(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bandwidth = RATE * PAGE * 0.3
    found = predicted(capsys, recording, "--bandwidth", f"{bandwidth:.0f}B")
    assert (found["converges"], found["verdict"]) == (False, "does not converge")
    assert (found["total_s"], found["downtime_s"]) == (None, None)
    assert found["low"]["total_s"] is None
    assert found["left_bytes"] == pytest.approx(AREA * PAGE, rel=0.01)
    assert 1 < len(found["passes"]) < 60
    reasons = " ".join(found["reasons"])
    assert "and so does the next" in reasons
    assert f"{FIRST:#x} (anonymous)" in reasons, "the mapping that is re-dirtied"
    assert found["min_downtime_s"] == pytest.approx(AREA / (RATE * 0.3), rel=0.05)


@pytest.mark.parametrize(("policy", "passes"), [("criu:3", 4), ("passes:1", 2), ("xen", 6)])
def test_policies_that_always_end(
    recording: Path, policy: str, passes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = f"{RATE * PAGE * 0.5:.0f}B"
    found = predicted(capsys, recording, "--bandwidth", slow, "--policy", policy)
    assert (found["policy"], len(found["passes"]), found["converges"]) == (policy, passes, True)
    assert found["downtime_goal_s"] is None
    found = predicted(
        capsys, recording, "--bandwidth", slow, "--policy", policy, "--downtime", "10ms"
    )
    assert (found["converges"], found["verdict"]) == (False, "does not converge")
    assert found["total_s"] > found["downtime_s"] > 0.01


def test_memory_and_zero_pages(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        recording,
        "--bandwidth",
        "1GB",
        "--policy",
        "qemu",
        "--memory",
        "200MiB",
        "--downtime",
        "5ms",
    )
    full = predicted(capsys, *words)
    found = predicted(capsys, *words, "--zero", "100MiB")
    assert full["passes"][0]["bytes"] > 199 * MIB
    saved = full["transferred_bytes"] - found["transferred_bytes"]
    assert saved == pytest.approx(25600 * (PAGE + 8 - 9), rel=0.1)
    assert found["basis"]["zero_pages"] == 25600
    assert full["basis"]["zero_pages"] is None


def test_the_last_pass_at_another_bandwidth(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (recording, "--bandwidth", "50MiB", "--policy", "qemu")
    slow = predicted(capsys, *words)
    fast = predicted(capsys, *words, "--last-bandwidth", "5000MiB")
    assert fast["downtime_s"] == pytest.approx(slow["downtime_s"] / 100, rel=0.01)


def test_text(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(recording), "--bandwidth", "100MiB"]) == 0
    shown = capsys.readouterr().out
    assert "redirty at 100 MiB/s, downtime at most 300.0 ms: converges" in shown
    for words in ("total", "downtime", "transferred", "target stopped", "W(t)", "by bandwidth and"):
        assert words in shown
    assert "*" in shown and shown.isascii()
    assert max(map(len, shown.splitlines())) < 140
    assert cli.main(["predict", str(recording), "--bandwidth", "10MiB"]) == 0
    assert "never" in capsys.readouterr().out


# ---- poor or invalid input ----


def test_one_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predicted(capsys, record(tmp_path / "rec", 1), "--bandwidth", "34MiB")
    assert found["verdict"] == "uncertain"
    assert any("a single round does not show" in note for note in found["notes"])


def test_an_idle_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = record(tmp_path / "rec", 8, rate=0.0)
    found = predicted(capsys, directory, "--bandwidth", "1MiB", "--downtime", "1ms")
    assert (found["verdict"], len(found["passes"]), found["downtime_s"]) == ("converges", 2, 0)
    assert found["reasons"] == ["nothing was written: one pass copies everything"]
    assert cli.main(["predict", str(directory), "--bandwidth", "1MiB"]) == 0
    assert "nothing was written" in capsys.readouterr().out


def test_a_target_that_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predicted(capsys, record(tmp_path / "a", 8, complete=False), "--bandwidth", "1GB")
    assert any("ended early" in note for note in found["notes"])
    assert (
        cli.main(["predict", str(record(tmp_path / "b", 0, complete=False)), "--bandwidth", "1GB"])
        == 1
    )
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "no complete round: nothing to predict from" in shown.err


def test_more_bandwidth_than_memory_has(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predicted(capsys, recording, "--bandwidth", "100TB", "--downtime", "1us")
    assert found["converges"]
    assert any("faster than memory can be read" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--bandwidth", "0MiB"], "--bandwidth must be positive"),
        (["--bandwidth", "200"], "no unit"),
        (["--bandwidth", "fast"], "--bandwidth: invalid rate"),
        (["--bandwidth", "1GB", "--downtime", "0"], "--downtime must be positive, got 0"),
        (["--bandwidth", "1GB", "--downtime", "0ms"], "--downtime must be positive, got 0ms"),
        (["--bandwidth", "1GB", "--downtime", "soon"], "invalid time"),
        (["--bandwidth", "1GB", "--downtime", "300"], "write 300ms or 300s"),
        (["--bandwidth", "1GB", "--stop-cost", "5"], "write 5ms or 5s"),
        (["--bandwidth", "10gb"], "may be bits or bytes"),
        (["--bandwidth", "1GB", "--policy", "magic"], "unknown policy"),
        (["--bandwidth", "1GB", "--policy", "criu:0"], "criu:3"),
        (["--bandwidth", "1GB", "--memory", "1Gbit"], "512MiB"),
        (["--bandwidth", "1GB", "--zero", "x"], "512MiB"),
        (["--bandwidth", "1GB", "--last-bandwidth", "0B"], "--last-bandwidth must be positive"),
        (["--bandwidth", "1GB", "-d", "5s"], "recorded already"),
        (["--bandwidth", "1GB", "--interval", "5s"], "recorded already"),
        (["--bandwidth", "1GB", "-p", "1"], "not both"),
    ],
    ids=" ".join,
)
def test_wrong_usage(
    words: list[str], why: str, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", str(recording), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("redirty: ") and shown.err.count("\n") == 1
    assert why in shown.err


def test_neither_recording_nor_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--bandwidth", "1GB"]) == 2
    assert "specify a recording (DIR), or a target" in capsys.readouterr().err
    assert cli.main(["predict", "rec"]) == 2
    assert "--bandwidth" in capsys.readouterr().err


def test_a_directory_that_is_not_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "none"):
        assert cli.main(["predict", str(place), "--bandwidth", "1GB"]) == 1
        assert "is not a recording" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-d", "0"], "--duration must be at least one round"),
        (["-d", "100ms"], "--duration must be at least one round"),
        (["--interval", "0"], "--interval must be at least 1ms"),
        (["-d", "x"], "--duration: invalid time"),
    ],
    ids=" ".join,
)
def test_times_of_a_live_target(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "-p", "1", "--bandwidth", "1GB", *words]) == 2
    assert why in capsys.readouterr().err


def test_an_older_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = record(tmp_path / "rec", 12)
    new = predicted(capsys, directory, "--bandwidth", "100MiB")
    (directory / "curves.csv").unlink()
    old = predicted(capsys, directory, "--bandwidth", "100MiB")
    assert old["total_s"] == pytest.approx(new["total_s"], rel=0.15)
    assert any("no curves.csv" in note for note in old["notes"])


def test_damage_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = record(tmp_path / "rec", 4)
    frame = pd.read_csv(directory / "curves.csv")
    frame.drop(columns="rounds").to_csv(directory / "curves.csv", index=False)
    assert cli.main(["predict", str(directory), "--bandwidth", "1GB"]) == 1
    shown = capsys.readouterr().err
    assert "curves.csv is damaged" in shown and shown.count("\n") == 1


# ---- the plot ----


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("mappings.csv", "start", "zz"),
        ("mappings.csv", "end", "0x1ffffffffffffffff"),
        ("mappings.csv", "dirty_pages", "many"),
        ("rounds.csv", "duration_s", "0.1.2"),
        ("curves.csv", "elapsed_s", "-"),
        ("zeros.csv", "start", ""),
        ("zeros.csv", "zero_pages", "none"),
        ("zeros.csv", "end", "12 pages"),
    ],
)
def test_a_damaged_value_is_reported(
    name: str, column: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = record(tmp_path / "rec", 4)
    (directory / "zeros.csv").write_text(
        "pid,start,end,mapping_class,pages,present_pages,zero_pages\n"
        "7,0x1000,0x3000,anon_private,2,2,1\n"
    )
    frame = pd.read_csv(directory / name, dtype=str)
    frame.loc[0, column] = value
    frame.to_csv(directory / name, index=False, lineterminator="\r\n")
    assert cli.main(["predict", str(directory), "--bandwidth", "1GB"]) == 1
    shown = capsys.readouterr().err
    assert f"{name} is damaged: column {column}" in shown
    assert shown.count("\n") == 1


def test_plot() -> None:
    lines = ascii_plot.plot(
        lambda t: 1000 * t, 0.001, 10.0, 1.0, (lambda t: 0.0, lambda t: 1500 * t)
    )
    assert len(lines) == ascii_plot.HEIGHT + 2
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "1.0 ms" in text and "10.0 s" in text and "100.0 ms" in text
    measured, beyond = text.count("*"), text.count("o")
    assert measured / beyond == pytest.approx(math.log(1000) / math.log(10), rel=0.2)
    assert ":" in text


def test_a_plot_of_nothing() -> None:
    assert ascii_plot.plot(lambda t: 0.0, 0.001, 10.0, 1.0) == []
    assert ascii_plot.plot(lambda t: t, 1.0, 1.0, 1.0) == []


@pytest.mark.parametrize(
    ("times", "verdict", "code"),
    [(2.0, "converges", 0), (0.3, "does not converge", 4), (1.02, "uncertain", 5)],
)
def test_the_exit_code_of_a_verdict(
    times: float, verdict: str, code: int, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only on request: without the option a prediction that was made ends with 0."""
    asked = predicted(capsys, recording, "--bandwidth", "1Gbit")["min_bandwidth_bytes_per_s"]
    words = ["predict", str(recording), "--bandwidth", f"{asked * times:.0f}B"]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict
    for more in ([], ["--json"]):
        assert cli.main([*words, "--exit-code", *more]) == code
    assert cli.main([*words, "--exit-code", "--policy", "magic"]) == 2


def test_the_answer_is_in_the_unit_of_the_question(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(bandwidth: str) -> str:
        assert cli.main(["predict", str(recording), "--bandwidth", bandwidth]) == 0
        return capsys.readouterr().out

    bits, short, octets = answer("10Gbit"), answer("10 G"), answer("1.25GB/s")
    assert "redirty at 10 Gbit/s, downtime at most" in bits
    assert "  needs        0.21 Gbit/s  for" in bits
    assert bits == short
    assert "redirty at 1.25 GB/s" in octets and "  needs         0.026 GB/s  for" in octets
    for text in (bits, octets):
        table = text.split("total time, by bandwidth")[1]
        assert ("Gbit/s" in table) != ("GB/s" in table)
