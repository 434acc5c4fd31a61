"""What the tests on this machine's own kernel need."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

import pytest
from redirty.collector.attach.tracer import Tracer

from tests.host.recording import LiveRounds, open_tracer
from tests.host.walk import Start, Walk
from tests.tiers import require, require_program, require_root
from tests.workloads.driver import Phases


@pytest.fixture(scope="session")
def tracing() -> None:
    """Tracing a workload: the rights for it, BCC, and a compiler for the workloads."""
    require_root()
    require(importlib.util.find_spec("bcc"), "needs BCC (Debian package python3-bpfcc)")
    require_program("gcc", "gcc")
    require_program("make", "make")


@pytest.fixture(scope="module")
def tracer(tracing: None) -> Iterator[Tracer]:
    """One log for all tests."""
    opened = open_tracer()
    yield opened
    opened.close()


@pytest.fixture
def start(tracer: Tracer) -> Iterator[Start]:
    """Starts a workload with some areas, and its first round."""
    with contextlib.ExitStack() as stack:

        def begin(**areas: tuple[str, int]) -> Walk:
            phases = stack.enter_context(Phases(areas))
            live = stack.enter_context(LiveRounds(phases.pid, tracer=tracer))
            return Walk(phases, live.begin())

        yield begin
