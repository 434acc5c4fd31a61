"""Answers of all commands: predict, report, top --replay and a mirror say the same of the same rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from redirty.collector.analyze import prediction_text
from redirty.collector.analyze.observations import observe
from redirty.collector.cli import main as cli
from redirty.collector.folders import Folder
from redirty.collector.linux.maps import Mapping
from redirty.collector.metrics.zero_pages import ZeroRange
from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.observer import PassReport
from redirty.collector.mirror.pipeline import PassCounts
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.transport.destination import Destination
from redirty.collector.model.predict import as_json, forecast
from redirty.collector.model.prediction import Question
from redirty.collector.model.stop_cost import StopSteps
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.recording.zeros import write_zeros
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.rounds import Round
from redirty.tui.readers.replay import Replay
from redirty.tui.snapshots.convergence import Convergence, ConvergenceQuestion, convergence
from redirty.tui.snapshots.history import KEPT, History
from redirty.tui.snapshots.snapshot import ReaderState

from tests.support.screen_factories import REDIS
from tests.support.waiting import wait_until
from tests.support.written_rounds import (
    FIRST_PAGE,
    Process,
    Writes,
    cyclic,
    make_rounds,
    skewed,
    uniform,
    write_recording,
)

RATE = "200Mbit"
BYTES_PER_S = 25e6
PRESENT = 6000
LENGTHS = [0.25] * 20
BOUNDARIES = [0.004] * 20
FEW = uniform(2000, 3000.0)


@dataclass(frozen=True)
class Kind:
    """A kind of recording: its rounds, and how many of its first pages are zero."""

    rounds: Callable[[], Sequence[Round]]
    zero: int = 0
    complete: bool = True


def plain(writes: Writes, present: int = PRESENT, **more: Any) -> Sequence[Round]:
    return make_rounds([Process(writes, present)], LENGTHS, BOUNDARIES, **more)


def busy_moments() -> Sequence[Round]:
    boundaries = [0.004 + 0.09 * (n % 5 == 4) for n in range(20)]
    return make_rounds([Process(FEW, PRESENT)], LENGTHS, boundaries)


def of_uneven_lengths() -> Sequence[Round]:
    """Rounds that were lengthened on the way, as top does."""
    return make_rounds([Process(FEW, PRESENT)], [0.1] * 12 + [0.4] * 13, [0.003] * 25)


def longer_than_what_top_shows() -> Sequence[Round]:
    count = KEPT + 60
    lengths, boundaries = [0.05] * count, np.linspace(0.001, 0.02, count).tolist()
    return make_rounds([Process(uniform(500, 2000.0), PRESENT)], lengths, boundaries)


def two_phases() -> Sequence[Round]:
    return plain(FEW, changes=lambda n, writes: writes if n < 10 else uniform(4000, 9000.0))


def two_processes() -> Sequence[Round]:
    both = [Process(FEW, PRESENT), Process(cyclic(900, 700.0), 1500, pid=78)]
    return make_rounds(both, LENGTHS, BOUNDARIES)


KINDS = {
    "cyclic": Kind(lambda: plain(cyclic(3000, 4000.0))),
    "uniform": Kind(lambda: plain(FEW)),
    "hot and cold": Kind(lambda: plain(skewed(5000, 9000.0))),
    "idle": Kind(lambda: plain(uniform(1, 0.0))),
    "growing": Kind(lambda: plain(cyclic(0, 1500.0, end=False), present=100)),
    "too busy for the link": Kind(lambda: plain(uniform(6000, 40_000.0))),
    "two processes": Kind(two_processes),
    "two phases": Kind(two_phases),
    "uneven lengths": Kind(of_uneven_lengths),
    "one round": Kind(lambda: make_rounds([Process(FEW, PRESENT)], [0.5], [0.004])),
    "long": Kind(longer_than_what_top_shows),
    "ended early": Kind(lambda: plain(FEW), complete=False),
    "busy moments": Kind(busy_moments),
    "zero pages": Kind(lambda: plain(FEW), zero=2500),
}


def recorded(kind: Kind, directory: Path) -> Path:
    write_recording(directory, kind.rounds(), complete=kind.complete)
    if kind.zero:
        area = Mapping(FIRST_PAGE * PAGE_SIZE, (FIRST_PAGE + PRESENT) * PAGE_SIZE, "rw-p", "")
        zeros = ZeroRange(
            77, area, area.start, area.end, PRESENT, kind.zero, 0, PRESENT, PRESENT, kind.zero
        )
        write_zeros(Folder.hold(directory), [zeros])
    return directory


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert cli.main([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def replayed(directory: Path, question: ConvergenceQuestion) -> Convergence:
    replay = Replay(directory, question)
    replay.start()

    def is_read() -> bool:
        latest = replay.latest
        assert latest is None or latest.state is not ReaderState.FAILED, latest.message
        return latest is not None and latest.convergence is not None

    wait_until(is_read, "the recording")
    replay.close()
    assert replay.latest is not None and replay.latest.convergence is not None
    return replay.latest.convergence


def mirrored(kind: Kind) -> Estimator:
    """Return the estimates of a mirror whose rounds were those of the recording."""
    request = MirrorRequest(cast(TargetSet, None), cast(Destination, None), Goals(0.3))
    estimator = Estimator(request)
    for one in kind.rounds():
        dirty = sum(len(s.dirty) for s in one.spaces)
        report = PassReport(one.number + 1, PassCounts(), 0, one.duration_s, dirty_pages=dirty)
        estimator.end_round(report, one, one.boundary_s, 0, 0)
    return estimator


def shown(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def assert_same(found: dict[str, Any], screen: Convergence) -> None:
    """Assert that a screen shows the figures of `predict --json`, to the last digit."""
    assert shown(screen.total_s) == found["total_s"]
    assert shown(screen.downtime_s) == found["downtime_s"]
    assert round(screen.transferred_bytes) == found["transferred_bytes"]
    assert screen.sufficient is not None
    assert round(screen.sufficient) == found["min_bandwidth_bytes_per_s"]
    assert screen.good == {"uncertain": None}.get(found["verdict"], found["converges"])
    assert round(screen.stop_s, 6) == found["basis"]["stop_s"]
    assert [(p.number, round(p.bytes), round(p.duration_s, 6)) for p in screen.passes] == [
        (p["pass"], p["bytes"], p["duration_s"]) for p in found["passes"]
    ]


@pytest.mark.parametrize("name", KINDS)
def test_every_command_gives_the_same_figures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[name]
    directory = recorded(kind, tmp_path / "rec")
    found = said(capsys, "predict", directory, "--bandwidth", RATE)
    reported = said(capsys, "report", directory, "--bandwidth", RATE)["prediction"]
    assert reported == {k: v for k, v in found.items() if k != "link"}
    assert_same(found, replayed(directory, ConvergenceQuestion(BYTES_PER_S)))

    basis = found["basis"]
    memory = basis["present_pages"] * PAGE_SIZE
    zero = (basis["zero_pages"] or 0) * PAGE_SIZE
    if kind.zero:
        assert basis["zero_pages"] == kind.zero
    outcome = mirrored(kind).forecast(Question(BYTES_PER_S, 0.3, memory=memory, zero=zero))
    assert outcome is not None
    assert shown(outcome.total_s) == found["total_s"]
    assert shown(outcome.downtime_s) == found["downtime_s"]
    assert round(outcome.transferred_bytes) == found["transferred_bytes"]
    assert outcome.converges == found["converges"]


@pytest.fixture(scope="module")
def hot_and_cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(KINDS["hot and cold"], tmp_path_factory.mktemp("policies") / "rec")


@pytest.mark.parametrize("words", [(), ("--downtime", "20ms"), ("--stop-cost", "7ms")])
@pytest.mark.parametrize("policy", ["redirty", "qemu", "criu:3", "passes:2", "xen"])
def test_the_same_for_every_policy(
    policy: str, words: tuple[str, ...], hot_and_cold: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A goal that nobody asked for counts for the policies that need one, on every screen."""
    found = said(capsys, "predict", hot_and_cold, "--bandwidth", RATE, "--policy", policy, *words)
    question = ConvergenceQuestion(BYTES_PER_S, policy=policy, downtime_asked=False)
    if "--downtime" in words:
        question = question.with_downtime(0.02)
    if "--stop-cost" in words:
        question = replace(question, stop_cost_s=0.007)
    seen = observe(hot_and_cold)
    screen = convergence(seen, question, History().mappings())
    assert shown(screen.total_s) == found["total_s"]
    assert shown(screen.downtime_s) == found["downtime_s"]
    assert screen.good == {"uncertain": None}.get(found["verdict"], found["converges"])


def test_text_and_json_list_the_parts_and_they_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded(KINDS["busy moments"], tmp_path / "rec")
    found = said(capsys, "predict", directory, "--bandwidth", RATE)
    p = found["parts"]
    parts = ("first_pass_s", "passes_s", "arms_s", "final_pass_s", "stop_s")
    assert sum(p[name] for name in parts) == pytest.approx(found["total_s"], abs=1e-5)
    assert p["final_pass_s"] + p["stop_s"] == pytest.approx(found["downtime_s"], abs=1e-5)
    assert p["first_pass_bytes"] + p["passes_bytes"] + p["final_pass_bytes"] == pytest.approx(
        found["transferred_bytes"], abs=3
    )
    assert p["stop"]["arm_s"] == p["stop_s"] == 0.004, "a busy moment in five changes nothing"
    assert p["stop"]["boundaries"] == 20
    assert p["stop"]["high_s"] > 0.09
    assert p["stop"]["freeze_s"] is None, "a recording stops nothing"
    assert cli.main(["predict", str(directory), "--bandwidth", RATE]) == 0
    predicted = capsys.readouterr().out
    assert cli.main(["report", str(directory), "--bandwidth", RATE]) == 0
    report = capsys.readouterr().out
    block = predicted.split("\n", 1)[1].split("\nW(t)")[0].strip()
    assert block.startswith("redirty at ")
    assert block in report
    for part in ("first pass", "arms", "final pass", "stop"):
        assert f"\n  {part}" in block, part
    assert "arm 4.0 ms" in block


STEPS = StopSteps(freeze_s=0.002, arm_s=0.003, scan_s=0.005, flush_s=0.0, registers_s=0.001)


def test_measured_steps_of_a_stop_take_the_place_of_boundaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = observe(recorded(KINDS["busy moments"], tmp_path / "rec"))
    alone = Question(BYTES_PER_S)
    found = as_json(forecast(seen, replace(alone, stop_steps=STEPS)))
    stop = found["parts"]["stop"]
    names = ("freeze_s", "arm_s", "scan_s", "registers_s", "commit_s")
    assert [stop[name] for name in names] == [0.002, 0.003, 0.005, 0.001, 0.0]
    assert found["parts"]["stop_s"] == 0.011
    assert found["parts"]["arms_s"] == as_json(forecast(seen, alone))["parts"]["arms_s"]
    later = as_json(forecast(seen, replace(alone, stop_steps=STEPS, start_s=0.1)))
    assert later["parts"]["arms_s"] == pytest.approx(found["parts"]["arms_s"] + 0.1 - 0.004)
    assert later["total_s"] == pytest.approx(found["total_s"] + 0.1 - 0.004)
    given = replace(alone, stop_steps=STEPS, stop_cost_s=0.05)
    assert as_json(forecast(seen, given))["parts"]["stop_s"] == 0.05
    text = prediction_text.as_text(forecast(seen, alone), found)
    assert "freeze 2.0 ms, arm 3.0 ms, scan 5.0 ms, registers 1.0 ms\n" in text


def test_a_given_stop_cost_takes_the_place_of_the_measured_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded(KINDS["busy moments"], tmp_path / "rec")
    measured = said(capsys, "predict", directory, "--bandwidth", RATE)
    given = said(capsys, "predict", directory, "--bandwidth", RATE, "--stop-cost", "50ms")
    assert given["parts"]["stop_s"] == 0.05
    assert given["parts"]["stop"]["given"] and not measured["parts"]["stop"]["given"]
    assert given["basis"]["boundary_s"] == measured["basis"]["boundary_s"]
    less = said(capsys, "predict", directory, "--bandwidth", RATE, "--stop-cost", "1ms")
    assert less["basis"]["boundary_s"] == 0.001, "a stop includes an arm"
    for answer in (given, less):
        final_s, stop_s = answer["parts"]["final_pass_s"], answer["parts"]["stop_s"]
        assert answer["downtime_s"] == pytest.approx(final_s + stop_s, abs=1e-5)
    assert cli.main(["predict", str(directory), "--bandwidth", RATE, "--stop-cost", "50"]) == 2
    assert "has no unit" in capsys.readouterr().err


def test_a_stop_that_takes_longer_than_the_goal_is_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason printed is the comparison that was made: the rest would fit, stopping does not."""
    rounds = make_rounds([Process(FEW, PRESENT)], LENGTHS, [0.7] * 20)
    directory = write_recording(tmp_path / "rec", rounds)
    found = said(capsys, "predict", directory, "--bandwidth", "10Gbit")
    assert found["verdict"] == "does not converge"
    assert (
        found["reasons"][0] == "stopping alone takes 700.0 ms, more than 300.0 ms, at any bandwidth"
    )
    screen = replayed(directory, ConvergenceQuestion(1.25e9))
    assert screen.verdict.startswith("will not converge: stopping alone takes 700.0 ms")
    assert found["min_bandwidth_bytes_per_s"] is None


@pytest.mark.parametrize("option", ["--downtime", "--policy", "--stop-cost"])
def test_a_report_without_a_bandwidth_has_no_question(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = "qemu" if option == "--policy" else "30ms"
    assert cli.main(["report", str(REDIS), option, value]) == 2
    assert f"{option} needs a bandwidth" in capsys.readouterr().err
    assert said(capsys, "report", REDIS).keys().isdisjoint({"prediction"})
