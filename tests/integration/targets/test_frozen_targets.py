"""Targets in a frozen cgroup, as a paused container is: refused in one line, or traced once they run again."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest

from tests.support.redirty_cli import finish, run_redirty, start_redirty
from tests.support.waiting import wait_until
from tests.tiers import require
from tests.torture.unharmed import Unharmed, freezers, frozen

pytestmark = pytest.mark.usefixtures("tracing")

COMMANDS = [
    ("record", "-d", "1", "-o", "OUT"),
    ("mirror", "--to", "OUT"),
    ("predict", "-d", "1", "--bandwidth", "1Gbit"),
]


@pytest.mark.parametrize("version", ["v2", "v1"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_refused_in_one_line_and_alive_when_thawed(
    tmp_path: Path, command: tuple[str, ...], version: str
) -> None:
    require(version in freezers(), f"needs a cgroup freezer of {version}")
    verb, *options = (str(tmp_path / "out") if word == "OUT" else word for word in command)
    with Unharmed(tolerant=True) as program:
        with frozen(program.pid, random.Random(), version=version):
            done = run_redirty(verb, "-p", program.pid, "--arm", "uffd", *options)
        assert done.code == 1, done
        assert len(done.lines) == 1, done
        assert "is frozen (paused) by its cgroup /redirty-unharmed-" in done.err
        program.assert_unharmed()


def test_a_newcomer_that_is_frozen_is_traced_when_it_runs(tmp_path: Path, cgroup: Path) -> None:
    """Check a cgroup: one process runs; another joins frozen, by a cgroup of its own, and is thawed later."""
    require((cgroup / "cgroup.freeze").exists(), "needs a cgroup of version 2")
    below = cgroup / "below"
    below.mkdir()
    try:
        with Unharmed(tolerant=True) as first, Unharmed(tolerant=True) as second:
            (cgroup / "cgroup.procs").write_text(str(first.pid))
            out = tmp_path / "r"
            process = start_redirty("record", "--cgroup", cgroup, "100ms", "-o", out)
            rounds = out / "rounds.csv"
            wait_until(lambda: rounds.exists() and rounds.read_bytes().count(b"\n") > 2, "rounds")
            (below / "cgroup.freeze").write_text("1")
            (below / "cgroup.procs").write_text(str(second.pid))
            many = rounds.read_bytes().count(b"\n")
            wait_until(lambda: rounds.read_bytes().count(b"\n") > many + 4, "more rounds")
            (below / "cgroup.freeze").write_text("0")
            many = rounds.read_bytes().count(b"\n")
            wait_until(lambda: rounds.read_bytes().count(b"\n") > many + 4, "more rounds")
            process.terminate()
            done = finish(process)
            assert done.code in (0, 130), done
            first.assert_unharmed()
            second.assert_unharmed()
        recorded = pd.read_csv(out / "pages.csv")
        assert second.pid in set(recorded["pid"])
    finally:
        (below / "cgroup.freeze").write_text("0")
        wait_until(lambda: not (below / "cgroup.procs").read_text().strip(), "an empty cgroup")
        below.rmdir()
