"""The mirror screen's reading of the lines of redirty mirror, and of what is entered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from redirty.collector.cli.main import _parser
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.target.targets import Pids, Tree
from redirty.collector.units import parse_rate, parse_time
from redirty.tui import export
from redirty.tui.render import mirror as draw
from redirty.tui.render.rows import Row, width_of
from redirty.tui.screens.mirror_confirm import code_file, destination
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from redirty.tui.snapshots.mirror_progress import MirrorProgress, Stage
from redirty.tui.snapshots.snapshot import ReaderState

from tests.support.screen_factories import MIRROR_LINES, mirror_progress

COMMAND = MirrorCommand("process 7: redis-server", ("-p", "7"), (7,), "/m", 0.3)


def text(rows: list[Row]) -> str:
    return "\n".join("".join(part for part, _ in row) for row in rows)


def test_progress_of_a_real_mirror() -> None:
    events = [json.loads(line) for line in MIRROR_LINES.read_text().splitlines()]
    p, message = mirror_progress().on_exit(0, "", cancelled=False)
    assert p.stage is Stage.DONE
    assert not message
    (done,) = [e["mirror"] for e in events if e["event"] == "done"]
    assert [x.bytes for x in p.passes] == [x["bytes"] for x in done["passes"]]
    assert len(p.passes) == len([e for e in events if e["event"] == "pass"]) + 1  # and the last one
    assert p.passes[-1].dirty_per_s is None
    assert [s.reason for s in p.decisions if s.action] == [d["reason"] for d in done["decisions"]]
    snapshot = MirrorSnapshot(1, ReaderState.LIVE, COMMAND, p, "", 3.0)
    rows = list(export.mirror(snapshot))
    assert [row[6] for row in rows[1:]] == [x["bytes"] for x in done["passes"]]
    assert rows[-2][9] == "quiesce"


def test_stages() -> None:
    stages: list[Stage] = []
    events = [json.loads(line) for line in MIRROR_LINES.read_text().splitlines()]
    p = MirrorProgress()
    for event in events:
        p = p.apply(event)
        if not stages or stages[-1] is not p.stage:
            stages.append(p.stage)
        if p.running is not None:
            assert 0 <= p.running.done_pages <= p.running.pages
    assert stages == [Stage.COPYING, Stage.STOPPING]


def test_lines_of_a_later_redirty_change_nothing() -> None:
    assert mirror_progress(3).apply({"event": "weather", "rain": True}) == mirror_progress(3)


@pytest.mark.parametrize(
    ("code", "stderr", "cancelled", "stage", "words"),
    [
        (130, "redirty: interrupted\n", True, Stage.CANCELLED, "the mirror was discarded"),
        (1, "redirty: it will not converge: x\n", False, Stage.FAILED, "it will not converge: x"),
        (1, "redirty: connection lost at the commit", True, Stage.FAILED, "at the commit"),
        (-9, "", True, Stage.FAILED, "signal 9"),
        (3, "", False, Stage.FAILED, "exit code 3"),
    ],
)
def test_exits(code: int, stderr: str, cancelled: bool, stage: Stage, words: str) -> None:
    p, message = mirror_progress(4).on_exit(code, stderr, cancelled=cancelled)
    assert p.stage is stage
    assert p.running is None
    assert words in message
    assert not message.startswith("redirty:")


def test_a_mirror_that_was_complete_before_it_was_cancelled_is_kept() -> None:
    p, _ = mirror_progress().on_exit(0, "", cancelled=True)
    assert p.stage is Stage.DONE


def test_the_command_line_is_understood() -> None:
    command = MirrorCommand("x", ("--tree", "1"), (1,), "h:99", 0.25, 12.5e6, "/c", verify=True)
    words = command.argv()
    options = _parser("mirror").parse_args(words[words.index("mirror") :])
    assert options.tree == "1"
    assert options.to == "h:99"
    assert parse_time(options.downtime, "--downtime") == pytest.approx(0.25)
    assert parse_rate(options.bandwidth, "--bandwidth") == 12.5e6
    assert options.verify
    assert options.json_lines
    assert options.code_file == "/c"
    assert command.over_network
    assert not COMMAND.over_network


def test_targets_as_arguments() -> None:
    me = os.getppid()
    assert Pids([me]).arguments() == ("-p", str(me))
    assert list(Pids([me]).pids) == [me]
    assert Tree(me).arguments() == ("--tree", str(me))
    assert list(Tree(me).pids) == [me]


def test_destinations(tmp_path: Path) -> None:
    assert destination(" 10.0.0.2:7000 ") == "10.0.0.2:7000"
    assert destination(f"{tmp_path}/new") == f"{tmp_path}/new"
    for invalid in ("", "  ", str(tmp_path), f"{tmp_path}/no/new", "host:70000"):
        with pytest.raises(RedirtyError):
            destination(invalid)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists already"):
        destination(str(tmp_path / "link"))
    assert code_file("  ") is None
    assert code_file(str(MIRROR_LINES)) == str(MIRROR_LINES)
    with pytest.raises(UsageError):
        code_file(str(tmp_path / "none"))


@pytest.mark.parametrize("width", [20, 80, 160])
def test_panels_fit(width: int) -> None:
    for count in (0, 1, 3, 5, None):
        for stage in Stage:
            p = mirror_progress(count)
            snapshot = MirrorSnapshot(
                1,
                ReaderState.LIVE,
                COMMAND,
                MirrorProgress(stage, p.passes, p.decisions, p.running, p.result),
                "why",
                1.0,
            )
            for height in (1, 2, 5, 20):
                for rows in (
                    draw.heading(snapshot, width),
                    draw.progress(snapshot, width, height),
                    draw.passes(snapshot, width, height),
                    draw.decisions(snapshot, width, height),
                ):
                    assert all(width_of(row) <= width for row in rows), text(rows)
                assert len(draw.passes(snapshot, width, height)) <= height
                assert len(draw.decisions(snapshot, width, height)) <= height


def test_the_confirmation_explains_the_mirror() -> None:
    shown = " ".join(text(draw.confirmation(COMMAND, "converges in 3 passes", 74)).split())
    for words in (
        "/m, a new directory",
        "300.0 ms",
        "is not stopped",
        "converges in 3",
        "unlimited",
    ):
        assert words in shown
    over = MirrorCommand("x", ("-p", "1"), (1,), "h:1", 0.3, 1e6, verify=True)
    shown = " ".join(text(draw.confirmation(over, "", 74)).split())
    for words in ("redirty receive must be listening", "8.0 Mbit/s", "verified against digests"):
        assert words in shown
