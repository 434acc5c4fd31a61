"""Destinations of a recording that cannot be created or written, and disks that fill up."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.support.error_assertions import COULD_NOT, assert_refused, assert_valid
from tests.support.redirty_cli import run_redirty
from tests.support.target_state import Condition, assert_released
from tests.tiers import require
from tests.workloads.driver import Checksum, Hold

pytestmark = pytest.mark.usefixtures("root")


def test_output_that_cannot_be_created(sleeper: Hold, tmp_path: Path) -> None:
    there, file = tmp_path / "there", tmp_path / "file"
    there.mkdir()
    file.write_text("kept")
    for output, words in (
        (there, "exists already"),
        (file, "exists already"),
        (tmp_path / "no" / "recording", "does not exist"),
        (file / "recording", "ENOTDIR"),
        (tmp_path / ("x" * 300), "ENAMETOOLONG"),
        ("/proc/recording", "cannot create /proc/recording"),
    ):
        done = run_redirty("record", "-p", sleeper.pid, "100ms", "1", "-o", output)
        assert_refused(done, COULD_NOT, words)
    assert list(there.iterdir()) == []
    assert file.read_text() == "kept"


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """Mount a small file system in memory."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 0, f"needs the right to mount: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_read_only_output(sleeper: Hold, tmp_path: Path) -> None:
    with mounted(tmp_path, "ro,size=64k"):
        output = tmp_path / "recording"
        done = run_redirty("record", "-p", sleeper.pid, "100ms", "1", "-o", output)
        assert_refused(done, COULD_NOT, str(output), "EROFS")


@pytest.mark.parametrize(
    ("size", "count", "switch", "kept"),
    [
        ("size=4k", 200, "", "none"),
        ("size=8k", 200, "", "none"),
        ("nr_inodes=1", 200, "", "none"),
        ("size=24k", 300, "", "some"),
        ("size=24k", 300, "--events", "some"),
        # The rounds fit, but not the sums at the end, which are longer.
        ("size=200k", 50, "", "all"),
        ("size=200k", 50, "--events", "all"),
        ("nr_inodes=8", 50, "--events", "all"),
        ("nr_inodes=8", 50, "--physical", "all"),
        ("size=220k", 50, "--physical", "all"),
    ],
)
def test_full_disk(tmp_path: Path, size: str, count: int, switch: str, kept: str) -> None:
    with Checksum(threads=2, mib=8) as target, mounted(tmp_path, size):
        before = Condition.of(target.pid)
        output = tmp_path / "recording"
        more = [switch] if switch else []
        done = run_redirty("record", "-p", target.pid, "20ms", count, *more, "-o", output)
        assert_refused(done, COULD_NOT, str(output), "No space left")
        assert_released(target, before)
        rounds = 0
        if (output / "meta.json").exists():
            assert json.loads((output / "meta.json").read_text())["complete"] is False
            rounds = assert_valid(output)
        expected = {"none": rounds == 0, "some": 0 < rounds < count, "all": rounds == count}
        assert expected[kept], f"{rounds} rounds of {count}"
        if kept == "none":
            assert not output.exists()
        if size in ("size=200k", "size=220k"):
            # Longer than the others, and written before them: its failure must not prevent them.
            assert not (output / "pages.csv").exists()
            assert len(pd.read_csv(output / "curve.csv")) > 0
        assert not list(output.glob(".*")), "half a file, or parts of which there are none"
        assert target.stop().errors == 0
