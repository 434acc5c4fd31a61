"""Targets that are not processes, that end, or that are traced by another process.

Each gives one clear line and the right exit code, and leaves the target unharmed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from redirty.collector.errors import one_line
from redirty.collector.target.targets import cgroup_mounts

from tests.support.error_assertions import COULD_NOT, TARGET_ENDED, assert_refused, assert_valid
from tests.support.redirty_cli import finish, run_redirty, start_redirty
from tests.support.waiting import wait_until
from tests.tiers import require
from tests.workloads.driver import Checksum, Hold

pytestmark = pytest.mark.usefixtures("root")


def test_thread_instead_of_process(tmp_path: Path) -> None:
    with Checksum(threads=2, mib=1) as target:
        tid = max(int(entry.name) for entry in os.scandir(f"/proc/{target.pid}/task"))
        for option in ("-p", "--tree"):
            done = run_redirty("record", option, tid, "-o", tmp_path / "recording")
            assert_refused(done, COULD_NOT, f"{tid} is a thread", f"-p {target.pid}")
        assert target.stop().errors == 0


def test_process_that_has_gone(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        done = run_redirty("record", "-p", process.pid, "-o", tmp_path / "recording")
        assert_refused(done, TARGET_ENDED, str(process.pid), "ended already")
    done = run_redirty("record", "-p", process.pid, "-o", tmp_path / "recording")
    assert_refused(done, COULD_NOT, f"no process {process.pid}")
    assert not (tmp_path / "recording").exists()


def test_process_that_ends_while_redirty_starts(tmp_path: Path) -> None:
    """A process that ends at any moment of the start gives one of a few answers, never a traceback."""
    for attempt in range(10):
        life_s = 0.15 * attempt
        output = tmp_path / f"recording{attempt}"
        # init reaps it, because its parent, the shell, ends at once
        started = subprocess.run(
            ["sh", "-c", f"sleep {life_s} >/dev/null & echo $!"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        done = run_redirty("record", "-p", int(started.stdout), "10s", "-o", output)
        assert done.code in (COULD_NOT, TARGET_ENDED)
        assert_refused(done, done.code, started.stdout.strip())


def test_process_that_ends_in_a_round(tmp_path: Path) -> None:
    output = tmp_path / "recording"
    rounds = output / "rounds.csv"

    def wait_rounds(number: int) -> None:
        wait_until(lambda: rounds.exists() and rounds.read_bytes().count(b"\n") > number, "rounds")

    with Hold("sleep") as target:
        process = start_redirty("record", "-p", target.pid, "50ms", "-o", output)
        wait_rounds(1)
        written = set(target.write(5, 9).pages.tolist())
        wait_rounds(rounds.read_bytes().count(b"\n") + 1)
        target.signal(signal.SIGKILL)
        done = finish(process)
    assert_refused(done, TARGET_ENDED, "ended", "kept")
    assert assert_valid(output) >= 3
    meta = json.loads((output / "meta.json").read_text())
    assert meta["complete"] is False
    assert meta["rounds"] == len(pd.read_csv(rounds))
    recorded = pd.read_csv(output / "pages.csv")["address"]
    assert written <= {int(address, 16) >> 12 for address in recorded}


def test_cgroup(tmp_path: Path) -> None:
    output = tmp_path / "recording"
    done = run_redirty("record", "--cgroup", "/no/such", "-o", output)
    assert_refused(done, COULD_NOT, "no cgroup /no/such")
    # An empty name does not mean the root cgroup.
    done = run_redirty("record", "--cgroup", "", "-o", output)
    assert_refused(done, COULD_NOT, "no cgroup ''")
    mounts = [mount for mount in cgroup_mounts() if os.access(mount, os.W_OK)]
    require(mounts, "needs a cgroup mount")
    empty = mounts[0] / f"redirty-test-{os.getpid()}"
    try:
        empty.mkdir()
    except OSError as e:
        require(False, f"needs the right to make a cgroup: {e}")
    try:
        done = run_redirty("record", "--cgroup", empty, "-o", output)
        assert_refused(done, TARGET_ENDED, "no process in it")
    finally:
        empty.rmdir()
    assert not output.exists()


@pytest.mark.parametrize(
    "name", ["a b", "a\\040b", "a\u2028b", "a\x0bb", "a\nb c", "a\x85 b"], ids=ascii
)
def test_cgroup_mounted_at_a_place_with_an_odd_name(tmp_path: Path, name: str) -> None:
    """Mount a cgroup hierarchy in a mount namespace of its own, so that no other process finds it."""
    place = tmp_path / name
    place.mkdir()
    mount = 'mount -t cgroup2 none "$0" && exec "$@"'
    wrapper = ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, str(place)]
    tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    require(tried.returncode == 0, f"needs cgroups of version 2: {tried.stderr.strip()}")
    words = ["--cgroup", "/no/such", "-o", tmp_path / "recording"]
    done = run_redirty("record", *words, wrapper=wrapper)
    assert_refused(done, COULD_NOT, "no cgroup /no/such", one_line(str(place)))


# ---- targets that another tracer has ----


def test_two_at_once(sleeper: Hold, tmp_path: Path) -> None:
    first = start_redirty("record", "-p", sleeper.pid, "50ms", "-o", tmp_path / "first")
    rounds = tmp_path / "first" / "rounds.csv"
    wait_until(lambda: rounds.exists() and rounds.read_bytes().count(b"\n") > 1, "a round")
    second = run_redirty("record", "-p", sleeper.pid, "50ms", "2", "-o", tmp_path / "second")
    first.send_signal(signal.SIGINT)
    assert finish(first).code == 130
    assert_refused(second, COULD_NOT, "another")
    assert not (tmp_path / "second").exists()
