"""Cgroups of every type, and directories that only look like one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.target.targets import Cgroup, cgroup_mounts

from tests.support.error_assertions import COULD_NOT, assert_refused
from tests.support.redirty_cli import run_redirty
from tests.tiers import require

pytestmark = pytest.mark.usefixtures("tracing")

PROGRAM = """
import sys, threading
threading.Thread(target=sys.stdin.read).start()
print(threading.get_native_id(), flush=True)
"""


@pytest.fixture
def threaded() -> Iterator[Path]:
    """Yield a new threaded cgroup; its parent is its domain."""
    mounts = [m for m in cgroup_mounts() if (m / "cgroup.controllers").exists()]
    require(mounts, "needs cgroup version 2")
    domain = mounts[0] / "redirty-test-threads"
    inner = domain / "inner"
    try:
        inner.mkdir(parents=True)
        (inner / "cgroup.type").write_text("threaded")
    except OSError as e:
        require(False, f"no threaded cgroups here: {e}")
    yield inner
    for directory in (inner, domain):
        with contextlib.suppress(OSError):
            directory.rmdir()


def test_a_threaded_cgroup_has_the_processes_of_its_threads(threaded: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        (threaded.parent / "cgroup.procs").write_text(str(process.pid))
        (thread,) = {int(p.name) for p in Path(f"/proc/{process.pid}/task").iterdir()} - {
            process.pid
        }
        (threaded / "cgroup.threads").write_text(str(thread))
        with pytest.raises(OSError):
            (threaded / "cgroup.procs").read_text()
        assert Cgroup(str(threaded)).members() == [process.pid]
        done = run_redirty("record", "--cgroup", threaded, "200ms", "2", "-o", tmp_path / "r")
        process.stdin.close()
        process.wait()
    assert done.code == 0, done


def test_a_directory_that_is_no_cgroup(tmp_path: Path) -> None:
    looks_like_one = tmp_path / "fake"
    looks_like_one.mkdir()
    for content in ("", "1\n", "x\n"):
        (looks_like_one / "cgroup.procs").write_text(content)
        for path in (looks_like_one, tmp_path, "/etc", "n" * 300, "/etc/passwd"):
            with pytest.raises(RedirtyError, match=r"^no cgroup "):
                Cgroup(str(path))
    done = run_redirty("record", "--cgroup", looks_like_one, "-o", tmp_path / "r")
    assert_refused(done, COULD_NOT, "no cgroup ")
