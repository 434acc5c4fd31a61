"""Targets on the command line: exactly one, and cgroups wherever they are mounted."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from redirty.collector.cli.arguments.target import target_of
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.target import command, targets


def options_with(**given: Any) -> argparse.Namespace:
    names = ("pid", "tree", "cgroup", "unit", "container", "vm")
    return argparse.Namespace(**(dict.fromkeys(names) | {"command": []} | given))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"pid": ["1"], "tree": "1"},
        {"pid": ["1"], "command": ["x"]},
        {"cgroup": "x", "tree": "1"},
        {"unit": "x", "container": "x"},
    ],
    ids=str,
)
def test_exactly_one_target(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one target"):
        target_of(options_with(**given))


@pytest.mark.parametrize("given", [{"pid": ["0"]}, {"pid": ["1", "-5"]}, {"tree": "0"}], ids=str)
def test_process_ids_are_positive(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        target_of(options_with(**given))


def test_kinds_of_targets() -> None:
    child = subprocess.Popen(["sleep", "infinity"])
    try:
        pids = target_of(options_with(pid=[str(child.pid)] * 2))
        assert isinstance(pids, targets.Pids)
        assert pids.members() == [child.pid]
        assert not pids.follow_fork
        tree = target_of(options_with(tree=str(child.pid)))
        assert isinstance(tree, targets.Tree)
        assert tree.members() == [child.pid]
        assert tree.follow_fork
    finally:
        child.kill()
        child.wait()


def test_a_command_waits_until_it_is_released(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    started = target_of(options_with(command=["touch", str(ran)]))
    assert isinstance(started, command.Command)
    assert started.members() == [started.pid]
    assert started.description == f"touch {ran}"
    assert not ran.exists()
    started.release()
    started.check_started()
    os.waitpid(started.pid, 0)
    assert ran.exists()


def test_a_command_that_is_never_released_does_nothing(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    started = command.Command(["touch", str(ran)])
    started.abandon()
    assert not ran.exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(started.pid, 0)


@pytest.mark.parametrize(("name", "why"), [("/no/such/program", "ENOENT"), ("/dev/null", "EACCES")])
def test_a_command_that_cannot_be_run(name: str, why: str) -> None:
    started = command.Command([name])
    started.release()
    with pytest.raises(RedirtyError, match=f"cannot run {name}: .*{why}"):
        started.check_started()


def test_redirty_does_not_trace_itself() -> None:
    with pytest.raises(RedirtyError, match="itself"):
        targets.Pids([os.getpid()])


def test_no_such_cgroup(tmp_path: Path) -> None:
    with pytest.raises(RedirtyError, match="no cgroup /no/such"):
        targets.find_cgroup("/no/such")
    with pytest.raises(RedirtyError, match="no cgroup"):
        targets.find_cgroup(str(tmp_path))


# Each ends a line or a word for Python, and is an ordinary part of a name for the kernel.
ODD = [
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\r",
    "\xa0",
    "\u3000",
    "\udcff",
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_mount_points_may_be_called_anything(odd: str) -> None:
    name = os.fsencode(f"/mnt/a{odd}b")
    text = (
        b"proc /proc proc rw,nosuid 0 0\n"
        b"none " + name + b" cgroup2 rw 0 0\n"
        b"a" + os.fsencode(odd) + b"b /mnt/second cgroup rw 0 0\n"
    )
    assert targets.parse_mounts(text) == [
        (Path("/proc"), "proc"),
        (Path(f"/mnt/a{odd}b"), "cgroup2"),
        (Path("/mnt/second"), "cgroup"),
    ]


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        (rb"a\040b", "a b"),
        (rb"a\011\012b", "a\t\nb"),
        (rb"a\134040b", "a\\040b"),
        (rb"\043x", "#x"),
        (rb"a\303\244", "aä"),
        (rb"a\0", "a\\0"),
    ],
)
def test_escapes_of_the_kernel_in_mount_points(escaped: bytes, name: str) -> None:
    text = b"none /" + escaped + b" cgroup2 rw 0 0\n"
    assert targets.parse_mounts(text) == [(Path(f"/{name}"), "cgroup2")]
