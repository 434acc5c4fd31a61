"""Tests of what is made of the columns that count shared memory once, and of recordings that lack them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.analyze import counted_once, load, observations, summary
from redirty.collector.bpf import abi
from redirty.collector.cli import main as cli
from redirty.collector.metrics.counted_once import counted
from redirty.collector.metrics.mapped_files import Shown
from redirty.collector.model.fit import fit
from redirty.collector.recording.writer import RecordingWriter
from redirty.collector.tracking.rounds import Round, SpaceRound
from redirty.tui.readers.recording import LoadedRecording
from redirty.tui.snapshots.history import History

from tests.support.factories import MAPPINGS, meta, pages
from tests.support.older_recording import drop_columns

SHOWN = Shown.of((m, 0) for m in MAPPINGS.items if m.shared)
SHARED, OWN = range(0x20, 0x30), range(0x10, 0x14)
PROCESSES = 3
ONCE = len(SHARED) + PROCESSES * len(OWN)
SUM = PROCESSES * (len(SHARED) + len(OWN))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Write a recording of three processes that all write the same shared memory, and some pages of their own."""
    about = meta()
    about.target["pids"] = [1, 2, 3]
    made = RecordingWriter(tmp_path / "rec", about)
    for number in range(8):
        stats = np.zeros(4, abi.STATS)
        stats["hist"][1:, 100:110] = 2
        spaces = tuple(
            SpaceRound(
                pid=pid, space=pid, mappings=MAPPINGS, present=pages(*OWN, *SHARED),
                log=pages(*OWN, *SHARED), missed=pages(), dirty=pages(*OWN, *SHARED),
                redirtied=pages(*OWN, *SHARED), scanned_pages=0, stats=stats[pid : pid + 1].copy(),
                unowned=pages(*SHARED),
            )
            for pid in range(1, 1 + PROCESSES)
        )  # fmt: skip
        result = Round(number, float(number), 1.0, 0.0, spaces, stats)
        once = counted(result, lambda n: SHOWN, {0: "file_shared"}, {0: 50}, {0: 50}, {1, 2, 3})
        made.add(result, None, once)
    made.close(complete=True)
    return tmp_path / "rec"


def older(recording: Path) -> Path:
    """Take away what an older redirty did not write."""
    drop_columns(recording, "rounds", "present_once_pages")
    drop_columns(recording, "curves", "dirty_once_pages")
    return recording


def test_shared_memory_counts_once_for_everything_that_uses_a_recording(recording: Path) -> None:
    rounds = load.load_rounds(recording)
    assert rounds["dirty_pages"].tolist() == [SUM] * 8, "that column keeps its meaning"
    assert rounds["dirty_once_pages"].tolist() == [ONCE] * 8
    seen = observations.observe(recording)
    assert seen.dirty.tolist() == seen.redirtied.tolist() == [ONCE] * 8
    assert seen.present.tolist() == [50 + PROCESSES * len(OWN)] * 8
    assert seen.points.dirty[seen.points.rounds > 0].max() == ONCE
    assert seen.points.dirty[seen.points.rounds == 0].max() <= ONCE
    replayed = History(LoadedRecording(recording).rounds).observed()
    assert replayed is not None
    for name in ("dirty", "redirtied", "present"):
        assert getattr(replayed, name).tolist() == getattr(seen, name).tolist()
    assert fit(replayed).curve(1.0) == fit(seen).curve(1.0) == pytest.approx(ONCE)
    s = summary.summarise(recording)
    assert (s["dirty_pages"], s["dirty_once_pages"]) == (SUM * 8, ONCE * 8)
    assert s["curve_once"][-1]["unique_dirty_pages"] == ONCE
    text = summary.as_text(s)
    assert f"{ONCE * 8} pages" in text
    assert "summed over processes" in text
    assert counted_once.notes(load.load_meta(recording), rounds) == []


def test_older_recordings_have_sums(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older(recording)
    seen = observations.observe(recording)
    assert seen.dirty.tolist() == [SUM] * 8
    s = summary.summarise(recording)
    assert s["dirty_once_pages"] is s["present_once_pages_mean"] is None
    assert s["curve_once"] == []
    text = summary.as_text(s)
    assert f"{SUM * 8} pages" in text
    assert counted_once.NOTE in text
    assert cli.main(["predict", str(recording), "--bandwidth", "1Gbit", "--json"]) == 0
    assert counted_once.NOTE in json.loads(capsys.readouterr().out)["notes"]


def test_an_older_recording_of_one_process_needs_no_note(recording: Path) -> None:
    about = json.loads((recording / "meta.json").read_text())
    about["target"]["pids"] = [1]
    (recording / "meta.json").write_text(json.dumps(about))
    older(recording)
    assert counted_once.NOTE not in summary.as_text(summary.summarise(recording))
