"""Requests made of command lines: what is refused with a usage error, and what the options become."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.cli.mirror import arguments, request_from
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.linux import privileges
from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.network_hold import NetworkHold
from redirty.collector.mirror.transport.compression import compress
from redirty.collector.mirror.transport.destination import (
    DirectoryDestination,
    ReceiverDestination,
)
from redirty.collector.mirror.transport.pairing import new_code, parse_code

from tests.support.processes import idle_process


def options(*words: object) -> argparse.Namespace:
    """Parse a command line; a later --to replaces the directory."""
    parser = argparse.ArgumentParser()
    arguments(parser)
    return parser.parse_args(
        ["--to", "/nonexistent/m", *map(str, words)], argparse.Namespace(command=[])
    )


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the check of privileges."""
    monkeypatch.setattr(privileges, "require_root", lambda: None)


@pytest.fixture
def pid() -> Iterator[int]:
    """Start a process that can be a target."""
    with idle_process() as process:
        yield process.pid


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--passes", "0"], "--passes must be between 1 and 1000, got 0"),
        (["--passes", "1001"], "--passes must be between 1 and 1000, got 1001"),
        (["--downtime", "0"], "--downtime must be positive, got 0"),
        (["--downtime", "31m"], None),
        (["--downtime", "721h"], "--downtime must be at most 30 days, got 721h"),
        (["--deadline", "0s"], "--deadline must be positive, got 0s"),
        (["--deadline", "721h"], "--deadline must be at most 30 days, got 721h"),
        (["--patience", "0s"], "--patience must be positive, got 0s"),
        (["--bandwidth", "10"], "has no unit"),
        (["--qmp", "/nonexistent"], "--qmp must be the socket of QEMU's -qmp option"),
        (["--vm", "1", "--hold-network"], "a stopped guest sends nothing"),
        (["--compress"], "--compress needs --to HOST:PORT"),
        (["--to", "::1"], "write HOST:PORT or"),
        (["--to", "host:65536"], "at most 65535"),
    ],
)
def test_invalid_options_are_usage_errors(
    words: list[str], message: str | None, root: None
) -> None:
    """Options without a message of their own are valid: then it is the target that is missing."""
    with pytest.raises(UsageError, match=message or "target"):
        request_from(options(*words))


def test_usage_errors_come_before_the_check_of_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RedirtyError("not root")

    monkeypatch.setattr(privileges, "require_root", refuse)
    with pytest.raises(UsageError, match="--passes"):
        request_from(options("-p", "1", "--passes", "0"))
    with pytest.raises(RedirtyError, match="not root"):
        request_from(options("-p", "0"))


def test_a_directory_that_exists_is_refused(tmp_path: Path, root: None) -> None:
    with pytest.raises(RedirtyError, match="exists already"):
        request_from(options("-p", "1", "--to", tmp_path))


@pytest.mark.parametrize(
    ("words", "goals"),
    [
        ([], Goals(0.2)),
        (["--downtime", "1s"], Goals(1.0)),
        (["--passes", "3"], Goals(None, passes=3)),
        (["--deadline", "1m"], Goals(None, 60.0)),
        (["--downtime", "1s", "--deadline", "1m", "--passes", "3"], Goals(1.0, 60.0, 3)),
    ],
)
def test_the_default_downtime_holds_without_another_goal(
    words: list[str], goals: Goals, root: None, pid: int
) -> None:
    assert request_from(options("-p", pid, *words)).goals == goals


def test_options_become_fields_of_the_request(tmp_path: Path, root: None, pid: int) -> None:
    text = new_code()
    code = tmp_path / "code"
    code.write_text(text)
    code.chmod(0o600)
    words: list[object] = ["-p", pid, "--to", "host.example:7411", "--code-file", code]
    words += ["--patience", "5s"]
    words += ["--bandwidth", "80Mbit", "--verify", "--leave", "stopped", "--compress"]
    words += ["--hold-network=shared", "--arm", "uffd", "--probe", "kprobe"]
    request = request_from(options(*words))
    assert request.destination == ReceiverDestination(
        "host.example:7411", "host.example", 7411, parse_code(text), 5.0
    )
    assert repr(parse_code(text)) not in repr(request), "the code is a secret"
    assert request.bandwidth == 1e7
    assert (request.verify, request.leave_stopped) == ("sent", True)
    assert request.network == NetworkHold(shared=True, remote=True)
    assert request.compress is compress
    assert (request.arm, request.probe) == ("uffd", "kprobe")


def test_the_defaults_of_a_request(root: None, pid: int) -> None:
    request = request_from(options("-p", pid))
    assert request.destination == DirectoryDestination(Path("/nonexistent/m"))
    assert (request.verify, request.leave_stopped) == (None, False)
    assert request.bandwidth is None and request.compress is None
    assert request.qmp is None and request.network is None
