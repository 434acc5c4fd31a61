"""Requests to redirty mirror: invalid ones are refused at once, a mirror can be cancelled, a deadline is kept."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.mirror_oracle import mirror_json
from tests.support.redirty_cli import PATIENT_GOALS, REDIRTY, finish, run_redirty, start_redirty
from tests.support.target_state import Condition, assert_released
from tests.support.waiting import wait_until
from tests.workloads.driver import Writer

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_mirror_at_a_bit_a_second_can_be_cancelled(
    number: signal.Signals, tmp_path: Path
) -> None:
    """At this rate a piece of memory waits for hours."""
    to = tmp_path / "m"
    with Writer(8) as writer:
        before = Condition.of(writer.pid)
        sender = start_redirty("mirror", "-p", writer.pid, "--to", to, "--bandwidth", "1bit")
        wait_until(lambda: any(to.glob("*")), "the copy")
        time.sleep(0.5)
        sender.send_signal(number)
        done = finish(sender)
        assert done.code == 130, done
        assert not to.exists()
        assert_released(writer, before)


def test_a_deadline_that_the_first_pass_misses_ends_the_mirror(tmp_path: Path) -> None:
    to = tmp_path / "m"
    with Writer(64) as writer:
        before = Condition.of(writer.pid)
        words = ["-p", writer.pid, "--to", to, "--bandwidth", "2MiB", "--deadline", "2s"]
        done = run_redirty("mirror", "--json-lines", *words)
        assert done.code == 1, done
        assert (
            "cannot meet the deadline of 2.0 s" in done.err and len(done.err.splitlines()) == 1
        ), done
        *_, last = map(json.loads, done.out.splitlines())
        assert last["event"] == "failed" and last["why"] in done.err
        assert not to.exists()
        assert_released(writer, before)


def test_a_deadline_in_a_later_pass_stops_the_target(tmp_path: Path) -> None:
    """The pass ends early, and the target is stopped for the rest."""
    to = tmp_path / "m"
    with Writer(64) as writer:
        writer.start("uniform", 20_000, 16_384)
        words = ["-p", writer.pid, "--to", to, "--bandwidth", "20MiB", "--passes", "1000"]
        for deadline_s in (8, 40, 200, 1000):
            done = run_redirty(
                "mirror", "--json", *words, "--deadline", f"{deadline_s}s", "--verify=full"
            )
            # On a busy machine it is over before the start, or the first pass.
            if "cannot meet the deadline" not in done.err:
                break
        assert done.code == 0, done
        information = mirror_json(to)
        writer.signal(signal.SIGKILL)
    assert information["decisions"][-1]["reason"].endswith("the deadline is reached")
    # The last pass copies the rest, with the target stopped; the one before ended at the deadline.
    *before, _ = information["passes"]
    assert sum(p["duration_s"] for p in before) < 2 * deadline_s


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--downtime", "99999h"], "--downtime must be at most 30 days"),
        (["--deadline", "3000000000s"], "--deadline must be at most 30 days"),
        (["--qmp", "/nonexistent"], "got /nonexistent"),
        (["--to", ":7411"], "HOST:PORT"),
        (["--to", "::1:7411"], "HOST:PORT"),
    ],
)
def test_invalid_requests_are_refused_at_once(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with Writer(4) as writer:
        to = ["--to", tmp_path / "m"]
        done = run_redirty("mirror", "-p", writer.pid, *to, *words)
        assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1, done
    assert not list(tmp_path.iterdir())


def test_a_receiver_without_a_parent_directory_fails_at_once(tmp_path: Path) -> None:
    done = run_redirty("receive", "--listen", "127.0.0.1:0", "--to", tmp_path / "none" / "m")
    assert done.code == 1 and "does not exist" in done.err, done
    assert len(done.err.splitlines()) == 1


def test_a_tree_that_contains_redirty_is_mirrored_without_it(tmp_path: Path) -> None:
    """All processes of redirty are left out, helpers included."""
    to = tmp_path / "m"
    words = shlex.join([str(REDIRTY), "mirror", "--to", str(to), "--verify=full", *PATIENT_GOALS])
    line = f"{words} --tree $$; exit $?"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(mirror_json(to)["cores"]) == 1
