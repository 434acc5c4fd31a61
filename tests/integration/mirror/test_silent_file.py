"""A target that maps a file whose server never answers: commands end, with one line or by a signal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ManagedProcess
from tests.support.redirty_cli import finish, run_redirty, start_redirty
from tests.support.waiting import PATIENCE_S, wait_until
from tests.tiers import require
from tests.workloads.process import build

pytestmark = pytest.mark.usefixtures("tracing")


class Silent(ManagedProcess):
    """The server and its target. target: PID of the latter."""

    def __init__(self, directory: Path) -> None:
        process = subprocess.Popen(
            [build() / "silent", directory], stdout=subprocess.PIPE, text=True
        )
        super().__init__(process)
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        self.target = int(answer.get("pid", 0))
        self.error = answer.get("error", "")


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    require(Path("/dev/fuse").exists(), "needs FUSE in the kernel")
    (tmp_path / "mounted").mkdir()
    with Silent(tmp_path / "mounted") as program:
        require(program.target, f"cannot mount a FUSE file system: {program.error}")
        yield program


def state(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    assert "TracerPid:\t0\n" in status
    return status.partition("State:\t")[2][0]


def test_a_mirror_fails_with_the_name_of_the_file(silent: Silent, tmp_path: Path) -> None:
    done = run_redirty("mirror", "-p", silent.target, "--to", tmp_path / "m", timeout_s=PATIENCE_S)
    assert done.code == 1, done.err
    (line,) = [x for x in done.lines if x.startswith("redirty: ")]
    assert "silent-file, which the target maps: its file system (fuse) has not answered" in line
    assert state(silent.target) in "SR"


def test_a_mirror_that_waits_ends_by_a_signal(silent: Silent, tmp_path: Path) -> None:
    program = start_redirty("mirror", "-p", silent.target, "--to", tmp_path / "m")

    def waits() -> bool:
        assert program.poll() is None, program.communicate()[1]
        listed = subprocess.run(
            ["pgrep", "-P", str(program.pid), "-f", "file_reader"], capture_output=True, check=False
        )
        return bool(listed.stdout)

    wait_until(waits, "the reader of the file")
    program.terminate()
    done = finish(program, PATIENCE_S)
    assert done.code in (1, 130), done.err
    assert state(silent.target) in "SR"


def test_a_recording_is_as_any_other(silent: Silent, tmp_path: Path) -> None:
    done = run_redirty(
        "record", "-p", silent.target, "200ms", "3", "-o", tmp_path / "r", "--zeros", "--stacks",
        timeout_s=PATIENCE_S,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "r/meta.json").read_text())["complete"] is True
    assert state(silent.target) in "SR"
