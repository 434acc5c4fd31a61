"""Standard streams that are closed or full, and signals from the first moment on.

Each gives one line and the right exit code, and nothing is lost.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.error_assertions import only_an_error
from tests.support.kill_points import wait_rounds
from tests.support.processes import idle_process
from tests.support.redirty_cli import PATIENT_GOALS, REDIRTY, finish, run_redirty, start_redirty
from tests.support.target_state import descriptors
from tests.support.waiting import PATIENCE_S, wait_until
from tests.tiers import require, require_root

WRITER = """
import time
memory = bytearray(1 << 22)
while True:
    memory[::4096] = bytes([1]) * 1024
    time.sleep(0.01)
"""
FULL = "redirty: cannot write to stdout: No space left on device (ENOSPC)\n"
NOBODY_CARES = ("sh", "-c", "trap '' HUP INT TERM; exec \"$@\"", "sh")


@pytest.fixture
def pid() -> Iterator[int]:
    """Start a process that writes."""
    require_root()
    with subprocess.Popen([sys.executable, "-c", WRITER]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def recording(pid: int, tmp_path: Path) -> Path:
    """Make a short recording."""
    directory = tmp_path / "recording"
    assert run_redirty("record", "-p", pid, "100ms", 2, "-o", directory).code == 0
    return directory


def redirected(how: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run redirty with a redirection of the shell."""
    require(REDIRTY.exists(), f"{REDIRTY} is not installed: run make setup")
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {how}', "sh", str(REDIRTY), *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_report_that_cannot_be_written(recording: Path, more: list[str]) -> None:
    done = redirected(">/dev/full", "report", recording, *more)
    assert (done.returncode, done.stderr) == (1, FULL)


def test_a_summary_that_cannot_be_written_costs_no_mirror(pid: int, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    done = redirected(
        ">/dev/full", "mirror", "-p", pid, "--to", mirror, *PATIENT_GOALS, "--json", "-q"
    )
    assert (done.returncode, done.stderr) == (1, FULL)
    assert json.loads((mirror / "mirror.json").read_text())["passes"]


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_recording_needs_no_streams(pid: int, tmp_path: Path, how: str) -> None:
    directory = tmp_path / "recording"
    done = redirected(how, "record", "-p", pid, "100ms", 3, "-o", directory)
    assert done.returncode == 0, done
    assert done.stdout == ""
    assert json.loads((directory / "meta.json").read_text())["complete"]
    assert "redirty:" not in (directory / "rounds.csv").read_text()


@pytest.mark.parametrize("verb", ["check", "pagetables", "mirror"])
def test_closed_stdout_is_not_an_error(pid: int, tmp_path: Path, verb: str) -> None:
    words = {
        "check": [],
        "pagetables": ["-p", pid],
        "mirror": ["-p", pid, "--to", tmp_path / "m", *PATIENT_GOALS],
    }
    done = redirected(">&-", verb, *words[verb])
    assert done.returncode == 0, done
    assert "error" not in done.stderr


def test_ignored_signals_stay_ignored(pid: int, tmp_path: Path) -> None:
    directory = tmp_path / "recording"
    process = start_redirty("record", "-p", pid, "50ms", "-o", directory, wrapper=NOBODY_CARES)
    wait_rounds(directory, process)
    assert heard(process) == {signal.SIGTERM}
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 130


def test_ignored_signals_stay_ignored_by_a_mirror(pid: int, tmp_path: Path) -> None:
    words = ["mirror", "-p", pid, "--to", tmp_path / "m", "--bandwidth", "64KiB"]
    process = start_redirty(*words, wrapper=NOBODY_CARES)
    wait_until((tmp_path / "m").exists, "a mirror begun")  # when its handlers are there
    assert heard(process) == {signal.SIGTERM}
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_interrupted_while_sampling(pid: int, number: signal.Signals) -> None:
    process = start_redirty("pagetables", "-p", pid, "--sample", "1h")
    wait_until(lambda: listens(process), "it listens")
    process.send_signal(number)
    done = finish(process)
    assert (done.code, done.out, done.err) == (130, "", "redirty: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", ["record", "mirror", "check", "pagetables", "top"])
def test_interrupted_in_the_first_moment(
    pid: int, tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    target: list[object] = [] if verb == "check" else ["-p", pid]
    to = {"record": ["-o", tmp_path / "r"], "mirror": ["--to", tmp_path / "m"]}.get(verb, [])
    process = start_redirty(verb, *target, *to)
    while not listens(process):  # its modules are imported after that
        assert process.poll() is None
    process.send_signal(number)
    done = finish(process)
    assert (done.code, done.err) == (130, "redirty: interrupted\n")


def listens(process: subprocess.Popen[str]) -> bool:
    """Return whether redirty handles signals; before that the starting interpreter handles SIGINT only."""
    return heard(process) == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def heard(process: subprocess.Popen[str]) -> set[signal.Signals]:
    """Return which termination signals have a handler."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("\nSigCgt:")[2].split()[0], 16)
    return {n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if caught >> (n - 1) & 1}


def reads_page_tables(process: subprocess.Popen[str]) -> bool:
    """Return whether redirty has loaded the program that reads page tables, right before it samples."""
    assert process.poll() is None, finish(process)
    return any("bpf-prog" in to for to in descriptors(process.pid).values())


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_target_that_ends_while_it_is_sampled(more: list[str]) -> None:
    require_root()
    with idle_process() as target:
        process = start_redirty("pagetables", "-p", target.pid, "--sample", "3s", *more)
        wait_until(lambda: reads_page_tables(process), "its program is loaded")
        target.signal(signal.SIGKILL)  # and it is not reaped, so that its PID stays its own
        done = finish(process)
    assert done.code == 3 and only_an_error(done.out, done.err)
    assert len(done.lines) == 1 and f"process {target.pid}" in done.err and "ended" in done.err
