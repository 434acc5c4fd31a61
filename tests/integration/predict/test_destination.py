"""Measure the copier: a prediction is limited by what it reaches here, says so, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redirty.collector.mirror.calibration.copier import LOCAL, Kind, copier_speed

from tests.support.error_assertions import COULD_NOT, WRONG_USAGE, assert_refused
from tests.support.paths import TESTS
from tests.support.redirty_cli import run_redirty

RECORDING = TESTS / "data" / "redis"
KINDS = ("tcp", "tls+zstd")


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_gets_what_is_copied(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = ["--bandwidth", "1TB", "--destination", kind]
    done = run_redirty("predict", RECORDING, *words)
    assert done.code == 0, done
    (line,) = [x for x in done.out.splitlines() if x.startswith("limited by the copier: ")]
    assert f"over {kind[:3].upper()}{', compressed' if 'zstd' in kind else ''} here" in line
    assert "the link would carry 8.0 Tbit/s" in line
    assert not done.err and not list(tmp_path.iterdir())


def test_a_directory_limits_what_the_link_does_not(tmp_path: Path) -> None:
    words = ["predict", RECORDING, "--json", "--destination", f"local:{tmp_path}"]
    fast = json.loads(run_redirty(*words, "--bandwidth", "1TB").out)
    slow = json.loads(run_redirty(*words, "--bandwidth", "1kB").out)
    alone = json.loads(run_redirty(*words[:-2], "--bandwidth", "1TB").out)
    assert 0 < fast["copier_bytes_per_s"] < 1e12 and slow["copier_bytes_per_s"] > 1e3
    assert alone["copier_bytes_per_s"] is None
    assert fast["total_s"] > alone["total_s"], "the link alone would be faster"
    assert not list(tmp_path.iterdir()), "what was written is removed"


def test_the_rate_is_that_of_pages(tmp_path: Path) -> None:
    assert copier_speed(Kind(LOCAL, directory=tmp_path)).bytes_per_s > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--destination", "disk"], "--destination must be local, local:DIR, tcp or tls"),
        (["--destination", "local:"], "--destination must be local"),
        (["--destination", "local+zstd"], "--destination must be local"),
        (["--destination", "tls", "--policy", "qemu"], "--destination is for the policy redirty"),
        (["--destination", "local:/nonexistent/x"], "cannot create /nonexistent/x/.redirty-"),
    ],
)
def test_a_wrong_destination_is_refused_in_one_line(words: list[str], says: str) -> None:
    done = run_redirty("predict", RECORDING, "--bandwidth", "1Gbit", *words)
    assert_refused(done, COULD_NOT if "cannot" in says else WRONG_USAGE, says)
