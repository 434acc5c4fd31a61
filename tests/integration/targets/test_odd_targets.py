"""Programs that a careless tracer kills, recorded and mirrored: they live on, and what happened is said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.ptrace.helpers import code_search, injection
from redirty.collector.ptrace.helpers.arch import architecture
from redirty.collector.ptrace.helpers.borrowed import BorrowedThread

from tests.support.redirty_cli import PATIENT_GOALS, run_redirty
from tests.support.target_state import assert_released, descriptors, task_fields
from tests.support.waiting import PATIENCE_S, wait_until
from tests.workloads.process import build

pytestmark = pytest.mark.usefixtures("tracing")

USABLE = (
    "filter-last",
    "filter-low",
    "filter-all",
    "full",
    "full-threads",
    "small-stacks",
    "no-vdso",
    "handler",
    "deaf",
)


class Odd:
    """A running odd, told to end through a file."""

    def __init__(self, mode: str, flag: Path) -> None:
        self._flag = flag
        flag.write_bytes(bytes(4096))
        self._process = subprocess.Popen(
            [build() / "odd", mode, flag], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())
        threads = {
            "filter-last": 2,
            "filter-low": 2,
            "small-stacks": 2,
            "full-threads": 2,
            "handler": 2,
        }
        wait_until(lambda: len(task_fields(self.pid, "State")) >= threads.get(mode, 1), "threads")
        if mode.startswith("filter"):
            wait_until(self._filtered, "a filter is in place")

    def _filtered(self) -> bool:
        return "2" in {mode for (mode,) in task_fields(self.pid, "Seccomp").values()}

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """Tell it to end; return its status."""
        with self._flag.open("r+b") as file:
            file.write(b"\1")
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """Kill it, if it still runs."""
        if self.alive:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Odd]:
    program = Odd(request.param, tmp_path / "flag")
    yield program
    program.close()


@pytest.mark.parametrize("odd", USABLE, indirect=True)
def test_it_lives_on_and_is_recorded(odd: Odd, tmp_path: Path) -> None:
    before = {fd: to for fd, to in descriptors(odd.pid).items() if fd < 63}
    result = run_redirty("record", "-p", odd.pid, "100ms", "5", "-o", tmp_path / "r", "--json")
    assert result.code == 0, result.err
    assert odd.alive, "killed by a recording"
    after = {fd: to for fd, to in descriptors(odd.pid).items() if fd < 63}
    assert after == before
    assert {t for (t,) in task_fields(odd.pid, "TracerPid").values()} == {"0"}
    assert odd.end() == 0


@pytest.mark.parametrize("odd", ["filter-last", "filter-all", "full"], indirect=True)
def test_it_lives_on_and_is_mirrored(odd: Odd, tmp_path: Path) -> None:
    result = run_redirty("mirror", "-p", odd.pid, "--to", tmp_path / "m", "-q", *PATIENT_GOALS)
    assert result.code == 0, result.err
    assert odd.end() == 0


@pytest.mark.parametrize("odd", ["dispatch"], indirect=True)
@pytest.mark.parametrize("arguments", [("record", "-d", "1", "-o"), ("mirror", "--to")])
def test_a_program_that_intercepts_its_calls_is_refused(
    odd: Odd, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    command, *options = arguments
    result = run_redirty(command, "-p", odd.pid, "--arm", "uffd", *options, tmp_path / "out")
    assert result.code == 1
    assert "syscall user dispatch" in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert odd.end() == 0, "its handler is lost, or it was killed"


@pytest.mark.parametrize("odd", ["full"], indirect=True)
def test_nothing_is_left_in_it(odd: Odd, tmp_path: Path) -> None:
    from tests.support.target_state import Condition

    before = Condition.of(odd.pid)
    assert run_redirty("record", "-p", odd.pid, "-d", "1", "-o", tmp_path / "r").code == 0
    assert_released(odd, before)
    assert odd.end() == 0


@pytest.mark.parametrize("odd", ["handler"], indirect=True)
def test_a_thread_is_taken_that_finds_home_by_itself(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fails where the first thread is borrowed: on its alternate stack nothing may be written.
    survives = []
    in_new_thread = injection.in_new_thread

    def create(lent: BorrowedThread) -> int | None:
        survives.append(lent.survives)
        return in_new_thread(lent)

    monkeypatch.setattr(injection, "in_new_thread", create)
    code = code_search.search(odd.pid, architecture())
    descriptor, _ = injection.inject(odd.pid, code, PATIENCE_S, lambda: None)
    os.close(descriptor)
    assert survives == [True]
    assert odd.end() == 0
