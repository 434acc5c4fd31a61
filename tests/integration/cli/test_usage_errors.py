"""Invalid command lines: one clear line, the right exit code, the target unharmed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.error_assertions import COULD_NOT, WRONG_USAGE, assert_refused
from tests.support.redirty_cli import run_redirty
from tests.tiers import require
from tests.workloads.driver import Hold

pytestmark = pytest.mark.usefixtures("root")


@pytest.mark.parametrize(
    ("pid", "code", "words"),
    [
        ("0", WRONG_USAGE, "must be positive, got 0"),
        ("-1", WRONG_USAGE, "must be positive, got -1"),
        ("no-such-program", COULD_NOT, "no process is named 'no-such-program'"),
        ("4194305", COULD_NOT, "no process 4194305"),  # above the largest PID of any kernel
        ("3000000000", COULD_NOT, "no process 3000000000"),
        ("99999999999999999999", COULD_NOT, "no process 99999999999999999999"),
        ("2", COULD_NOT, "kernel thread"),
    ],
)
@pytest.mark.parametrize("option", ["-p", "--tree"])
def test_process_numbers(tmp_path: Path, option: str, pid: str, code: int, words: str) -> None:
    output = tmp_path / "recording"
    if pid == "2":
        require(_is_kernel_thread(2), "needs kthreadd to be process 2 (not in a pid namespace)")
    assert_refused(run_redirty("record", option, pid, "-o", output), code, words)
    assert not output.exists()


def _is_kernel_thread(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (
            int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]) >> 21 & 1 > 0
        )
    return False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0"], "interval must be at least 1ms, got 0;"),
        (["0s"], "interval must be at least 1ms, got 0s;"),
        (["0.1ms"], "interval must be at least 1ms, got 0.1ms;"),
        (["-1"], "-1"),
        (["soon"], "soon"),
        (["5parsecs"], "5parsecs"),
        (["nan"], "nan"),
        (["1s", "0"], "count"),
        (["1s", "-3"], "-3"),
        (["1s", "some"], "some"),
        (["-d", "0"], "duration"),
        (["-d", "1x"], "1x"),
        (["--probe", "magic"], "magic"),
        (["--arm", "magic"], "magic"),
        (["1s", "2", "3"], "3"),
        (["--bogus"], "--bogus"),
    ],
)
def test_invalid_arguments(sleeper: Hold, tmp_path: Path, words: list[str], message: str) -> None:
    output = tmp_path / "recording"
    done = run_redirty("record", "-p", sleeper.pid, "-o", output, *words)
    assert_refused(done, WRONG_USAGE, message)
    assert not output.exists()


def test_not_exactly_one_target(sleeper: Hold, tmp_path: Path) -> None:
    output = tmp_path / "recording"
    for words in (
        [],
        ["-p", sleeper.pid, "--tree", sleeper.pid],
        ["-p", sleeper.pid, "--", "true"],
        ["--"],
    ):
        assert_refused(run_redirty("record", "-o", output, *words), WRONG_USAGE, "one target")
    assert_refused(run_redirty("record", "-p", sleeper.pid), WRONG_USAGE, "--output")
    assert not output.exists()


@pytest.mark.parametrize("rate", ["200", "1.5", "10gb", "fast", "0MiB", "-3MiB"])
def test_rate_needs_a_unit(rate: str) -> None:
    assert_refused(run_redirty("demo", f"--rate={rate}"), WRONG_USAGE, rate)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program-anywhere", "ENOENT"),
        ("/no/such/program", "ENOENT"),
        ("/etc/passwd", "EACCES"),
        ("/", "EACCES"),
    ],
)
def test_command_that_cannot_run(tmp_path: Path, command: str, reason: str) -> None:
    output = tmp_path / "recording"
    assert_refused(run_redirty("record", "-o", output, "--", command), COULD_NOT, command, reason)
    assert not output.exists()
