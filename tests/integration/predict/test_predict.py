"""Write curves of a real writer with a known curve, recorded on this kernel; and predict on a live target."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from redirty.collector.analyze import load
from redirty.collector.analyze.observations import observe
from redirty.collector.model.fit import fit
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.recording.writer import RecordingWriter

from tests.support.error_assertions import TARGET_ENDED, WRONG_USAGE, assert_refused
from tests.support.factories import meta
from tests.support.redirty_cli import run_redirty
from tests.support.stepped_rounds import LiveRounds
from tests.workloads.driver import Hold, Phases, Writer, WriteRun, expected_distinct

pytestmark = pytest.mark.usefixtures("tracing")

# The writer writes a batch each millisecond: rounds of whole milliseconds would all start at the same moment
# of it. No more rounds than the model uses: on a machine whose pace changes they differ.
ROUNDS, INTERVAL_S = 64, 0.25031
PAGES, RATE = 16384, 8000
DECADES = 3
MOMENTS = 9
SETUPS_S = (
    4,
    60,
)  # to start the first round, and for the delay of rounds on a busy machine
_WORDS = PAGE_SIZE // 8  # in a page of its notes


def truth(
    pattern: str, run: WriteRun, arms_ns: npt.NDArray[np.float64], end_ns: float, seconds: float
) -> float:
    """Return W(t) by formula, for the numbers of writes that the writer made within t of each arm.

    Whatever the pace of the machine; with the few pages of the writer's notes and its stack. arms_ns: (m, n)
    moments of each of n arms, which protects one page after the other.
    """
    begin = arms_ns[:, arms_ns[0] + seconds * 1e9 <= end_ns + 1e6].ravel()
    writes = run.writes_at(begin + seconds * 1e9) - run.writes_at(begin)
    its_pages = [expected_distinct(pattern, 1, PAGES, n) for n in writes.tolist()]
    # The last value of each page, 8 bytes a page, in the order of the pages; and the log, 16 bytes a batch.
    each = 1 / _WORDS if pattern == "cyclic" else 1
    noted = [expected_distinct(pattern, each, PAGES // _WORDS, n) for n in writes.tolist()]
    logged = seconds * 1000 * 2 / _WORDS
    started = 3 if pattern == "cyclic" else 2  # pages of the notes, the log and the stack
    return float(np.mean(its_pages) + np.mean(noted) + logged + started)


@dataclass(frozen=True)
class Recorded:
    """A recorded writer.

    arms_ns: (MOMENTS, ROUNDS) CLOCK_MONOTONIC, from the start to the end of each arm.
    """

    run: WriteRun
    arms_ns: npt.NDArray[np.float64]
    end_ns: float


def recorded(pattern: str, directory: Path, setup_s: int) -> Recorded:
    """Record the writer at work."""
    recording = RecordingWriter(directory, meta())
    arms_ns = []
    with Writer(mib=PAGES * PAGE_SIZE >> 20) as writer, LiveRounds(writer.pid) as live:
        writer.start(pattern, RATE, PAGES, int(ROUNDS * INTERVAL_S) + setup_s, log=True)
        live.begin()
        for number in range(ROUNDS):
            time.sleep(INTERVAL_S)
            result = live.end_round()
            begun_ns = live.recorder.started_ns + result.start_s * 1e9
            arms_ns.append(begun_ns + result.arm_s * 1e9 * np.linspace(0, 1, MOMENTS))
            assert result.number == number
            recording.add(result)
        run = writer.finish()
    recording.close(complete=True)
    return Recorded(run, np.array(arms_ns).T, begun_ns + result.duration_s * 1e9)


@pytest.mark.parametrize("pattern", ["cyclic", "uniform"])
def test_the_curve_is_that_of_the_formula(pattern: str, tmp_path: Path) -> None:
    """Curves logged by BPF in the kernel are within 3 % of the formula over three decades of t."""
    for setup_s in SETUPS_S:
        directory = tmp_path / f"rec{setup_s}"
        seen = recorded(pattern, directory, setup_s)
        if seen.run.end_ns > seen.end_ns:
            break
    else:
        raise AssertionError(f"the rounds took {setup_s} s longer than they should")
    assert load.load_rounds(directory)["lost_events"].sum() == 0
    found = fit(observe(directory))
    last_s = found.curve.measured_s
    assert last_s >= ROUNDS * INTERVAL_S * 0.85
    times = np.geomspace(last_s / 10**DECADES, last_s, 60)
    expected = np.array(
        [truth(pattern, seen.run, seen.arms_ns, seen.end_ns, t) for t in times.tolist()]
    )
    curve = np.array([found.curve(t) for t in times.tolist()])
    off = np.abs(curve / expected - 1)
    worst = int(off.argmax())
    said = f"{curve[worst]:.1f} pages, not {expected[worst]:.1f}, after {times[worst]:.3f} s"
    print(
        f"{pattern}: at most {off[worst]:.2%} off: {said}; {seen.run.latest_ns / 1e6:.1f} ms late"
    )
    assert off[worst] < 0.03, said


def test_windows_have_the_pages_that_were_written(tmp_path: Path) -> None:
    """Windows of rounds that the test ends have exactly the distinct pages that were written."""
    with Phases({"a": ("anon_private", 2)}) as phases, LiveRounds(phases.pid) as live:
        live.begin()
        phases.write("a", "all")
        live.end_round()
        recording = RecordingWriter(tmp_path / "rec", meta(live.tracer.hooks))
        written = []
        for number in range(8):
            written.append(set(phases.write("a", "random", number, 60).pages.tolist()))
            result = live.end_round()
            object.__setattr__(result, "number", number)
            recording.add(result)
        recording.close(complete=True)
    frame = load.load_curves(tmp_path / "rec")
    ends = frame[(frame["rounds"] > 0) & (frame["mapping_class"] == "")]
    assert len(ends) == 8 + 4 + 2 + 2 + 4  # of 1; of 2; of 3 and 4; of 5 to 8
    for row in ends.to_dict("records"):
        first = int(row["round"])
        union = set().union(*written[first : first + int(row["rounds"])])
        # in addition to the area the program writes a little of its own (stack, heap)
        assert len(union) <= row["dirty_pages"] <= len(union) + 40
        assert row["redirtied_pages"] >= len(union)


@contextlib.contextmanager
def writing(rate: int, seconds: int = 3600) -> Iterator[Writer]:
    """Start a writer, which ends with the test."""
    with Writer(mib=16) as writer:
        writer.start("cyclic", rate, 4096, seconds)
        try:
            yield writer
        finally:
            writer.signal(signal.SIGKILL)


def test_live(tmp_path: Path) -> None:
    """Verdicts on much more bandwidth than is written, and on much less, do not depend on the machine's pace."""
    with writing(4000) as writer:
        words = ["predict", "-p", writer.pid, "-d", "2s", "--interval", "250ms", "--json", "-q"]
        fast = run_redirty(*words, "--bandwidth", "10GB", env={"TMPDIR": str(tmp_path)})
        slow = run_redirty(
            *words, "--bandwidth", "10kB", "--downtime", "10ms", env={"TMPDIR": str(tmp_path)}
        )
    assert (fast.code, slow.code) == (0, 0), (fast, slow)
    one, two = json.loads(fast.out), json.loads(slow.out)
    assert one["verdict"] == "converges"
    assert two["verdict"] == "does not converge"
    assert one["basis"]["present_pages"] >= 4096
    assert any("anon_private" in reason for reason in two["reasons"])
    assert list(tmp_path.iterdir()) == [], "it keeps no file"


def test_live_text(tmp_path: Path) -> None:
    with writing(4000) as writer:
        done = run_redirty(
            "predict", "-p", writer.pid, "-d", "1s", "--bandwidth", "1GB", "--policy", "qemu", "-q"
        )
    assert done.code == 0, done
    assert f"process {writer.pid}: writer" in done.out
    assert "qemu at 953.7 MiB/s, downtime at most 300.0 ms" in done.out


def test_a_command_that_ends_early() -> None:
    done = run_redirty(
        "predict", "-d", "60s", "--interval", "100ms", "--bandwidth", "1GB", "--json", "-q",
        "--", "sleep", "1",
    )  # fmt: skip
    assert done.code == TARGET_ENDED, done
    assert "predicted from" in done.err and len(done.lines) == 1
    assert json.loads(done.out)["basis"]["rounds_recorded"] > 0


def test_invalid_targets(tmp_path: Path) -> None:
    with Hold("sleep") as sleeper:
        done = run_redirty("predict", tmp_path, "-p", sleeper.pid, "--bandwidth", "1GB")
        assert_refused(done, WRONG_USAGE, "not both")
        done = run_redirty("predict", "-p", sleeper.pid, "--bandwidth", "1GB", "-d", "0")
        assert_refused(done, WRONG_USAGE, "--duration must be at least one round of 0.5 s, got 0 s")
