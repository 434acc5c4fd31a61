"""Termination of the collector by any signal at any moment: it ends in order, without a traceback."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.support.kill_points import INTERVAL, SEED, start_s, wait_rounds
from tests.support.redirty_cli import finish, start_redirty
from tests.support.target_state import Condition, assert_released
from tests.support.waiting import wait_until
from tests.workloads.driver import Checksum


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("bounded", [False, True])
def test_ended_by_a_signal(
    target: Checksum, tmp_path: Path, number: signal.Signals, bounded: bool
) -> None:
    before = Condition.of(target.pid)
    directory = tmp_path / "recording"
    words = ["-d", "24h"] if bounded else []
    process = start_redirty("record", "-p", target.pid, "50ms", *words, "-o", directory)
    wait_rounds(directory, process)
    process.send_signal(number)
    done = finish(process)
    assert done.code == 130, done
    assert "Traceback" not in done.err
    assert_released(target, before)
    meta = json.loads((directory / "meta.json").read_text())
    # Without a limit the recording is complete when the user ends it; with one it ended too early.
    assert meta["complete"] is not bounded
    rounds = pd.read_csv(directory / "rounds.csv")
    assert len(rounds) == meta["rounds"] >= 1
    for name in ("mappings.csv", "pages.csv", "curve.csv"):
        assert len(pd.read_csv(directory / name)), name
    pages = pd.read_csv(directory / "pages.csv")
    assert pages["rounds_dirty"].sum() == rounds["dirty_pages"].sum()
    assert target.stop().errors == 0


def test_interrupted_while_it_starts(target: Checksum, tmp_path: Path) -> None:
    """An interruption at any moment of the start shows no traceback, and does not leave the target stopped."""
    rng = random.Random(SEED)
    print(f"REDIRTY_SEED={SEED}")
    before = Condition.of(target.pid)
    start = start_s(target, tmp_path / "measured")
    for attempt in range(8):
        directory = tmp_path / f"start{attempt}"
        process = start_redirty("record", "-p", target.pid, INTERVAL, "-o", directory)
        # Before that the interpreter starts, not redirty.
        wait_until(lambda p=process: _runs_redirty(p), "redirty runs")  # type: ignore[misc]
        time.sleep(rng.uniform(0, start))
        process.send_signal(signal.SIGINT)
        done = finish(process)
        assert done.code == 130, done
        assert "Traceback" not in done.err, done
        assert_released(target, before)
    assert target.stop().errors == 0


def _runs_redirty(process: subprocess.Popen[str]) -> bool:
    """Return whether redirty's own modules are being imported: numpy is the first large one."""
    assert process.poll() is None, finish(process)
    return "numpy" in Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
