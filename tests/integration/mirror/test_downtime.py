"""The downtime that was asked for is kept, or it is said that it was not; verifying takes no time of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redirty.collector.mirror.promise import allowed_s

from tests.support.mirror_oracle import mirror_json
from tests.support.receiver import receive
from tests.support.redirty_cli import Done, finish, start_redirty
from tests.support.standstill import Standstill
from tests.support.target_state import is_freezer, tracer_of
from tests.support.waiting import wait_until
from tests.workloads.driver import Writer

pytestmark = pytest.mark.usefixtures("tracing")


def stops_of(information: dict[str, Any]) -> list[float]:
    return [
        information["downtime_s"],
        *(f["downtime_s"] for f in information["failed_stops"]),
    ]


def assert_promise(done: Done, goal_s: float, seen_s: float) -> None:
    """Assert that a mirror stood still no longer than allowed, or says so.

    Args:
        done: of a mirror with --json.
        goal_s: the downtime asked for.
        seen_s: for how long the target was seen standing still.
    """
    assert "Traceback" not in done.err, done
    if done.code:
        (line,) = [x for x in done.lines if x.startswith("redirty: ")]
        assert done.code == 1 and "mirror" in line, done
        return
    information = json.loads(done.out)
    assert information["downtime_goal_s"] == goal_s
    longest_s = max(stops_of(information))
    assert seen_s <= longest_s, "it stood still for longer than is said"
    exceeded = longest_s > allowed_s(goal_s)
    assert information["kept_downtime"] is not exceeded, information
    assert exceeded == any("the downtime asked for was" in line for line in done.lines), done


@pytest.mark.parametrize("goal", ["50ms", "400ms"])
@pytest.mark.parametrize("to", ["directory", "loopback"])
def test_the_downtime_is_kept_or_it_is_said(goal: str, to: str, tmp_path: Path) -> None:
    folder, goal_s = tmp_path / "m", float(goal.removesuffix("ms")) / 1e3
    words: list[object] = ["--downtime", goal, "--verify", "--json"]
    with Writer(64) as target:
        target.start("uniform", 4000, 8000)
        with Standstill(target.pid) as seen:
            if to == "directory":
                done = finish(start_redirty("mirror", "-p", target.pid, "--to", folder, *words))
            else:
                with receive(folder, tmp_path / "log") as other:
                    words += ["--to", f"127.0.0.1:{other.port}", "--compress"]
                    done = finish(start_redirty("mirror", "-p", target.pid, *words))
        target.signal(signal.SIGKILL)
    assert_promise(done, goal_s, seen.longest_s)
    if done.code == 0:
        information = mirror_json(folder)
        assert information["verified"] and information["verified_by"] == "sent"


def test_a_freezer_that_is_late_is_reported_and_another_pass_follows(tmp_path: Path) -> None:
    """On a machine that does not run the freezer for a while, nothing else could have ended the stop."""
    goal_s = 6.0
    with Writer(24) as target:
        target.start("cyclic", 20_000, 6144)
        # All memory is pending after the only pass, and takes a second and a half: long enough to be seen.
        words = ["-p", target.pid, "--to", tmp_path / "m", "--bandwidth", "16MiB", "--passes", "1"]
        with Standstill(target.pid) as seen:
            sender = start_redirty("mirror", *words, "--downtime", f"{goal_s}s", "--json")
            freezer = _freezer_of(target, sender)
            os.kill(freezer, signal.SIGSTOP)
            try:
                late_s = allowed_s(goal_s) + 0.3
                wait_until(lambda: seen.longest_s > late_s, "the stop is too long")
            finally:
                os.kill(freezer, signal.SIGCONT)
            done = finish(sender)
        target.signal(signal.SIGKILL)
    assert_promise(done, goal_s, seen.longest_s)
    assert done.code == 0, done
    information = mirror_json(tmp_path / "m")
    assert information["kept_downtime"] is False
    failed = max(information["failed_stops"], key=lambda f: f["downtime_s"])
    assert failed["downtime_s"] > late_s and failed["reason"], failed
    assert "target resumed after" in done.err, done


def _freezer_of(target: Writer, sender: subprocess.Popen[str]) -> int:
    found = 0

    def stopped() -> bool:
        nonlocal found
        assert sender.poll() is None, sender.communicate()
        tracer = tracer_of(target.pid)
        found = tracer if tracer and is_freezer(tracer) else 0
        return found != 0

    wait_until(stopped, "the target is stopped")
    return found


def test_a_full_comparison_says_before_what_it_will_take(tmp_path: Path) -> None:
    with Writer(256) as target:
        words = ["-p", target.pid, "--to", tmp_path / "m", "--downtime", "10s", "--json"]
        done = finish(start_redirty("mirror", *words, "--verify=full"))
        target.signal(signal.SIGKILL)
    assert done.code == 0, done
    assert "--verify=full reads all memory" in done.lines[0], done
    information = mirror_json(tmp_path / "m")
    assert information["verified"] and information["verified_by"] == "full"
    assert 0 < information["verify_s"] < information["downtime_s"]


@pytest.mark.parametrize("to", ["directory", "loopback"])
def test_contents_that_changed_on_their_way_are_found(to: str, tmp_path: Path) -> None:
    """Change a byte of a page that is sent once, at the other end, while the target runs."""
    folder = tmp_path / "m"
    with Writer(32) as target:
        target.start("cyclic", 1, 8192)
        words: list[object] = ["-p", target.pid, "--bandwidth", "16MiB", "--verify"]
        if to == "directory":
            done = _with_a_wrong_byte(folder, [*words, "--to", folder])
        else:
            with receive(folder, tmp_path / "log") as other:
                done = _with_a_wrong_byte(folder, [*words, "--to", f"127.0.0.1:{other.port}"])
    assert done.code == 1, done
    assert "the mirror differs from what was sent" in done.lines[-1], done
    assert not (folder / "mirror.json").exists()


def _with_a_wrong_byte(folder: Path, words: list[object]) -> Done:
    sender = start_redirty("mirror", *words, "--downtime", "1h", "--passes", "1")

    def changed() -> bool:
        """Change a byte in the middle of what is stored of the writer's memory."""
        assert sender.poll() is None, sender.communicate()
        for path in folder.glob(".*.pages"):
            with path.open("r+b", buffering=0) as file:
                for start, end in _data(file.fileno()):
                    if end - start > 4 << 20:
                        at = start + (2 << 20)
                        before = os.pread(file.fileno(), 1, at)
                        os.pwrite(file.fileno(), bytes([before[0] ^ 1]), at)
                        return True
        return False

    wait_until(changed, "contents are stored")
    return finish(sender)


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each part of a file that has contents."""
    end = 0
    with contextlib.suppress(OSError):  # ENXIO: no more
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, end
