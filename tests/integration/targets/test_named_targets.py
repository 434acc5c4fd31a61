"""Targets by name: programs, trees, virtual machines, units and containers as their runtimes lay them out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.target import names

from tests.support.error_assertions import COULD_NOT, WRONG_USAGE, assert_refused
from tests.support.redirty_cli import run_redirty
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("tracing")

ID = "3f9a" * 16
OTHER_ID = "3f9b" * 16
_SLEEPER = (
    "import time\nm = bytearray(1 << 20)\nwhile True: m[::4096] = b'x' * 256; time.sleep(0.02)"
)
_PARENT = (
    "import os, sys, time\n"
    "for _ in range(2):\n"
    "    if os.fork() == 0: time.sleep(1_000_000)\n"
    "time.sleep(1_000_000)"
)


@contextlib.contextmanager
def running(program: Path, code: str, *words: str) -> Iterator[int]:
    """Run Python code under another program's name."""
    argv = ["setpriv", "--pdeathsig", "KILL", "--", program, "-S", "-c", code, *words]
    process = subprocess.Popen([str(word) for word in argv], process_group=0)
    try:
        wait_until(
            lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == program.name[:15],
            "the program runs",
        )
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Make a program of a name that no other has."""
    path = tmp_path / f"rd{os.getpid()}x"
    shutil.copy(Path(sys.executable).resolve(), path)
    return path


def test_a_program_by_its_name(program: Path) -> None:
    with running(program, _SLEEPER) as pid:
        assert names.process_of(program.name) == pid
        assert names.process_of(str(pid)) == pid
        assert names.tree_of(program.name) == pid
        done = run_redirty(
            "predict", "-p", program.name, "--bandwidth", "1GB", "-d", "1s", "--json", "-q"
        )
        assert done.code == 0, done
        assert json.loads(done.out)["basis"]["rounds"] >= 1
    assert_refused(
        run_redirty("record", "-p", program.name, "-o", "/nonexistent/x"),
        COULD_NOT,
        f"no process is named '{program.name}': see 'ps -e'",
    )


def test_a_name_of_several_is_answered_with_a_list(program: Path) -> None:
    with running(program, _PARENT) as root:
        wait_until(lambda: len(names._processes_named(program.name)) == 3, "its children run")
        with pytest.raises(RedirtyError) as caught:
            names.process_of(program.name)
        text = str(caught.value)
        assert text.startswith(f"3 processes are named '{program.name}': {root} (")
        assert text.endswith(f"; give -p PID, or --tree {root} for all of them")
        assert names.tree_of(program.name) == root, "they have one root"
        with (
            running(program, _SLEEPER) as other,
            pytest.raises(RedirtyError, match=rf"2 processes .*{root} .*{other} .*--tree PID$"),
        ):
            names.tree_of(program.name)


@pytest.mark.parametrize("text", ["0", "-3", "9" * 90])
def test_a_number_is_never_a_name(text: str) -> None:
    with pytest.raises(UsageError, match="a process ID must be positive"):
        names.process_of(text)
    assert_refused(run_redirty("pagetables", f"--pid={text}"), WRONG_USAGE, "must be positive")


def test_a_virtual_machine_by_its_name(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    shutil.copy(Path(sys.executable).resolve(), qemu)
    name = f"web-{os.getpid()}"
    with running(qemu, _SLEEPER, "-name", f"guest={name},debug-threads=on") as pid:
        assert names.machine_of(name) == pid
        assert names.machine_of(str(pid)) == pid
        with pytest.raises(RedirtyError, match=rf"no virtual machine is named 'wbe': .*{name}"):
            names.machine_of("wbe")


# ---- units and containers ----


@contextlib.contextmanager
def process_in(directory: Path) -> Iterator[int]:
    """Run a program in a new cgroup."""
    directory.mkdir()
    try:
        with subprocess.Popen([sys.executable, "-S", "-c", _SLEEPER]) as process:
            try:
                (directory / "cgroup.procs").write_text(str(process.pid))
                yield process.pid
            finally:
                process.kill()
                process.wait()
    finally:
        wait_until(lambda: _removed(directory), "an empty cgroup")


def _removed(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


def recorded_pids(tmp_path: Path, *target: str) -> list[int]:
    directory = tmp_path / f"rec{time.monotonic_ns()}"
    done = run_redirty("record", *target, "200ms", 2, "-q", "-o", directory)
    assert done.code == 0, done
    pids: list[int] = json.loads((directory / "meta.json").read_text())["target"]["pids"]
    return pids


def test_a_unit_is_the_cgroup_of_its_name(cgroup: Path, tmp_path: Path) -> None:
    unit = f"redirty{os.getpid()}"
    with process_in(cgroup / f"{unit}.service") as pid:
        assert recorded_pids(tmp_path, "--unit", unit) == [pid]
        assert recorded_pids(tmp_path, "--unit", f"{unit}.service") == [pid]
        (cgroup / "user").mkdir()
        with process_in(cgroup / "user" / f"{unit}.service"):
            done = run_redirty("record", "--unit", unit, "-o", tmp_path / "x")
            assert_refused(done, COULD_NOT, f"2 units are named {unit}.service: {cgroup}")
        (cgroup / "user").rmdir()
    done = run_redirty("record", "--unit", unit, "-o", tmp_path / "x")
    assert_refused(done, COULD_NOT, f"no unit {unit}.service runs here")


@pytest.mark.parametrize(
    "layout",
    [
        "docker-{id}.scope",
        "libpod-{id}.scope",
        "cri-containerd-{id}.scope",
        "crio-{id}.scope",
        "{id}",
        "lxc.payload.web",
    ],
)
def test_a_container_is_the_cgroup_of_its_id(layout: str, cgroup: Path, tmp_path: Path) -> None:
    name = "web" if "lxc" in layout else ID[:12]
    with process_in(cgroup / layout.format(id=ID)) as pid:
        (cgroup / f"libpod-conmon-{ID}.scope").mkdir()  # Podman's monitor is not in the container
        try:
            assert recorded_pids(tmp_path, "--container", name) == [pid]
            if "lxc" not in layout:
                with process_in(cgroup / f"docker-{OTHER_ID}.scope"):
                    assert recorded_pids(tmp_path, "--container", ID) == [pid]
                    done = run_redirty("record", "--container", "3f9", "-o", tmp_path / "x")
                    assert_refused(done, COULD_NOT, "no container 3f9 runs here")
        finally:
            (cgroup / f"libpod-conmon-{ID}.scope").rmdir()


def test_a_container_by_the_name_that_its_runtime_notes(
    cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker, podman = tmp_path / "docker", tmp_path / "podman"
    (docker / ID).mkdir(parents=True)
    (docker / ID / "config.v2.json").write_text(json.dumps({"ID": ID, "Name": "/shop"}))
    (docker / "broken").mkdir()
    (docker / "broken" / "config.v2.json").write_text("{")
    listed = podman / "containers" / "storage" / "overlay-containers"
    listed.mkdir(parents=True)
    about = [{"id": OTHER_ID, "names": ["mail"]}, "nothing", {"id": 7}]
    (listed / "containers.json").write_text(json.dumps(about))
    monkeypatch.setattr(names, "_DOCKER", docker)
    monkeypatch.setattr(names, "_PODMAN_HOMES", (str(podman),))
    with process_in(cgroup / f"docker-{ID}.scope"), process_in(cgroup / f"libpod-{OTHER_ID}.scope"):
        assert names.container_cgroup("shop") == cgroup / f"docker-{ID}.scope"
        assert names.container_cgroup("mail") == cgroup / f"libpod-{OTHER_ID}.scope"
        with pytest.raises(RedirtyError, match="no container sh runs here"):
            names.container_cgroup("sh")
