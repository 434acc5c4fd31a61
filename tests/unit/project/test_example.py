"""The worked example of the docs runs and prints the right figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.unit.cli.test_predict import RATE, record

SCRIPT = ROOT / "docs/examples/compare_recordings.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False
    )


def test_two_recordings_are_compared(tmp_path: Path) -> None:
    """The figures of two recordings are printed side by side."""
    before, after = record(tmp_path / "a", 8), record(tmp_path / "b", 8, rate=RATE / 2)
    done = run(before, after)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:18].strip(): line[18:].split() for line in done.stdout.splitlines()[1:9]}
    assert rows["dirty MiB/s"] == ["31.25", "15.62", "0.50"]
    assert rows["W(0.1 s) MiB"] == ["3.12", "1.56", "0.50"]
    assert "anon_private (anonymous)" in done.stdout


def test_a_directory_without_a_recording_is_refused(tmp_path: Path) -> None:
    """A directory that is not a recording, and missing arguments, are refused with one line."""
    done = run(tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("compare_recordings: ") and done.stderr.count("\n") == 1
    assert "python docs/examples/compare_recordings.py BEFORE AFTER" in run().stderr
