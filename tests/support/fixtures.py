"""Fixtures of tests that trace on this machine's own kernel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.target.targets import cgroup_mounts

from tests.support.phase_walk import Start, Walk
from tests.support.stepped_rounds import LiveRounds, open_tracer
from tests.support.target_state import Condition, assert_released
from tests.support.waiting import wait_until
from tests.tiers import require, require_program, require_root
from tests.workloads.driver import Checksum, Hold, Phases


@pytest.fixture(scope="session")
def tracing() -> None:
    """Require what tracing a workload needs: root, BCC, and a compiler for the workloads."""
    require_root()
    require(importlib.util.find_spec("bcc"), "needs BCC (Debian package python3-bpfcc)")
    require_program("gcc", "gcc")
    require_program("make", "make")


@pytest.fixture
def root() -> None:
    """Require root."""
    require_root()


@pytest.fixture
def sleeper(root: None) -> Iterator[Hold]:
    """Start a target that only sleeps; assert that it is unharmed at the end."""
    with Hold("sleep") as target:
        before = Condition.of(target.pid)
        yield target
        assert_released(target, before)
        assert len(target.write(0, 10).pages) == 10


@pytest.fixture
def target(root: None) -> Iterator[Checksum]:
    """Start a program that detects any harm done to it."""
    with Checksum(threads=2, mib=8) as program:
        yield program


@pytest.fixture(scope="module")
def tracer(tracing: None) -> Iterator[Tracer]:
    """Open one tracer for all tests of a module."""
    opened = open_tracer()
    yield opened
    opened.close()


@pytest.fixture
def cgroup(tracing: None) -> Iterator[Path]:
    """Create a cgroup below the mount of version 2, or of any controller."""
    places = cgroup_mounts()
    require(places, "needs a mounted cgroup hierarchy")
    directory = places[0] / f"redirty-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    # Its last processes end with the test; their memory may take a moment longer.
    wait_until(lambda: not (directory / "cgroup.procs").read_text().strip(), "an empty cgroup")
    directory.rmdir()


@pytest.fixture
def start(tracer: Tracer) -> Iterator[Start]:
    """Return a function that starts a workload with some areas, and its first round."""
    with contextlib.ExitStack() as stack:

        def begin(**areas: tuple[str, int]) -> Walk:
            phases = stack.enter_context(Phases(areas))
            live = stack.enter_context(LiveRounds(phases.pid, tracer=tracer))
            return Walk(phases, live.begin())

        yield begin
