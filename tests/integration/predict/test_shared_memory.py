"""Memory that processes share: counted once by a recording, and predicted as a mirror of it sends it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from redirty.tui.readers.recording import LoadedRecording

from tests.support.redirty_cli import run_redirty
from tests.support.servers import postgres
from tests.support.shared_program import ALL, HOT, shared_program
from tests.support.tested_methods import METHOD_OPTIONS
from tests.tiers import require_root

PAGE = 4096


def first_pass_of_a_mirror(pid: int, directory: Path) -> dict[str, Any]:
    """Mirror a tree; return the first pass."""
    words = ["--tree", pid, "--passes", 1, "--to", directory, "--json", "-q", *METHOD_OPTIONS]
    done = run_redirty("mirror", *words)
    assert done.code == 0, done
    found: dict[str, Any] = json.loads(done.out)["passes"][0]
    return found


def predicted(recording: Path, *words: object) -> dict[str, Any]:
    done = run_redirty("predict", recording, "--bandwidth", "1Gbit", "--json", *words)
    assert done.code == 0, done
    found: dict[str, Any] = json.loads(done.out)
    return found


def record(pid: int, directory: Path, *words: object) -> pd.DataFrame:
    done = run_redirty("record", "--tree", pid, *words, *METHOD_OPTIONS, "--zeros", "-o", directory)
    assert done.code == 0, done
    return pd.read_csv(directory / "rounds.csv")


@pytest.mark.parametrize(("kind", "mapped_by"), [("prefork", 4), ("memfd", 2), ("twice", 2)])
def test_a_page_that_many_write_is_one_page(kind: str, mapped_by: int, tmp_path: Path) -> None:
    require_root()
    with shared_program(kind, tmp_path) as server:
        rounds = record(server.pid, tmp_path / "rec", "1s", 4)
        first = first_pass_of_a_mirror(server.pid, tmp_path / "mirror")
    once, sums = rounds["dirty_once_pages"], rounds["dirty_pages"]
    # A process writes little more than that: its stack, the heap of its interpreter.
    assert HOT <= once.max() < HOT + 1000
    assert sums.max() > mapped_by * HOT
    assert (rounds["redirtied_once_pages"] <= once).all()
    assert rounds["redirtied_once_pages"].max() >= HOT
    assert (rounds["present_once_pages"] > ALL).all()
    curves = pd.read_csv(tmp_path / "rec" / "curves.csv")
    whole = curves[curves["mapping_class"].isna()]
    assert (whole["dirty_once_pages"] <= whole["dirty_pages"]).all()
    assert whole.loc[whole["rounds"] > 0, "dirty_once_pages"].max() < HOT + 2000
    found = predicted(tmp_path / "rec")
    assert found["passes"][0]["bytes"] == pytest.approx(first["bytes"], rel=0.05)
    assert found["basis"]["present_pages"] == pytest.approx(first["pages"], rel=0.05)
    # The screens' model sees the same figures.
    replayed = LoadedRecording(tmp_path / "rec")
    assert replayed.rounds[-1]["dirty_once_pages"] == once.iloc[-1]
    points = [p for r in replayed.rounds for p in r.points.dirty[r.points.rounds > 0].tolist()]
    assert max(points) < HOT + 2000
    assert np.isfinite(points).all()


def test_the_first_pass_of_a_database(tmp_path: Path) -> None:
    """PostgreSQL's shared buffers count once, however many of its processes have touched them."""
    require_root()
    with postgres() as server:
        server.fill(scale=3)
        with server.load(clients=6) as load:
            server.server.wait_ready(
                lambda: int(server.sql("select count(*) from pgbench_history")) > 500
            )
            rounds = record(server.pid, tmp_path / "rec", "1s", 5)
            first = first_pass_of_a_mirror(server.pid, tmp_path / "mirror")
            load.signal(signal.SIGALRM)
            assert load.wait() == 0, load.text()
        assert server.server.alive
    assert (rounds["dirty_once_pages"] <= rounds["dirty_pages"]).all()
    assert rounds["present_pages"].iloc[-1] > 1.3 * rounds["present_once_pages"].iloc[-1]
    found = predicted(tmp_path / "rec")
    # Between both the database grows: each transaction adds to its history and to the WAL.
    assert found["passes"][0]["bytes"] == pytest.approx(first["bytes"], rel=0.1)
    report = run_redirty("report", tmp_path / "rec")
    assert "summed over processes" in report.out, report
