"""What the tests on this machine's own kernel need."""

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
    """Tracing a workload: the rights for it, BCC, and a compiler for the workloads."""
    require_root()
    require(importlib.util.find_spec("bcc"), "needs BCC (Debian package python3-bpfcc)")
    require_program("gcc", "gcc")
    require_program("make", "make")


@pytest.fixture
def root() -> None:
    """The rights to trace."""
    require_root()


@pytest.fixture
def sleeper(root: None) -> Iterator[Hold]:
    """A target with nothing special, which must still answer at the end."""
    with Hold("sleep") as target:
        before = Condition.of(target.pid)
        yield target
        assert_released(target, before)
        assert len(target.write(0, 10).pages) == 10


@pytest.fixture
def target(root: None) -> Iterator[Checksum]:
    """A program that notices any harm done to it."""
    with Checksum(threads=2, mib=8) as program:
        yield program


@pytest.fixture(scope="module")
def tracer(tracing: None) -> Iterator[Tracer]:
    """One log for all tests."""
    opened = open_tracer()
    yield opened
    opened.close()


@pytest.fixture
def cgroup(tracing: None) -> Iterator[Path]:
    """A cgroup of our own, below the mount of version 2, or of any controller."""
    places = cgroup_mounts()
    require(places, "needs a mounted cgroup hierarchy")
    directory = places[0] / f"redirty-test-{os.getpid()}"
    directory.mkdir()
    yield directory
    # What is still in it ends with the test; its memory may take a moment longer.
    wait_until(lambda: not (directory / "cgroup.procs").read_text().strip(), "an empty cgroup")
    directory.rmdir()


@pytest.fixture
def start(tracer: Tracer) -> Iterator[Start]:
    """Starts a workload with some areas, and its first round."""
    with contextlib.ExitStack() as stack:

        def begin(**areas: tuple[str, int]) -> Walk:
            phases = stack.enter_context(Phases(areas))
            live = stack.enter_context(LiveRounds(phases.pid, tracer=tracer))
            return Walk(phases, live.begin())

        yield begin
