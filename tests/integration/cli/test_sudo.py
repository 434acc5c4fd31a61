"""Run under sudo: recordings, mirrors and exports belong to who called it, readable by nobody else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.redirty_cli import run_redirty
from tests.workloads.driver import Phases

pytestmark = pytest.mark.usefixtures("tracing")

NOBODY = 65534


def all_of(directory: Path) -> list[Path]:
    found = [directory, *directory.rglob("*")]
    assert len(found) > 2
    return found


def test_outputs_belong_to_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    recording, mirror, images = (tmp_path / name for name in ("rec", "mirror", "images"))
    with Phases() as target:
        for words in (
            ["record", "-p", target.pid, "200ms", 3, "--zeros", "-q", "-o", recording],
            ["mirror", "-p", target.pid, "--to", mirror, "-q"],
            ["export-criu", mirror, "-o", images],
        ):
            done = run_redirty(*words)
            assert done.code == 0, done
    for path in (*all_of(recording), *all_of(mirror), *all_of(images)):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY), path
        assert not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
    assert (recording / "zeros.csv").exists()
    assert os.geteuid() == 0
