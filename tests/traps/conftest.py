"""The fixtures of tests/support, with one tracer for all traps: compiling it takes long on an emulated machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redirty.collector.bpf.tracer import Tracer

from tests.support.fixtures import root, sleeper, start, target, tracing
from tests.support.stepped_rounds import open_tracer
from tests.traps.results import Plugin

__all__ = ["root", "sleeper", "start", "target", "tracing"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the table that is printed at the end."""
    config.pluginmanager.register(Plugin(), "redirty-traps")


@pytest.fixture(scope="session")
def tracer(tracing: None) -> Iterator[Tracer]:
    """Open one tracer for all tests."""
    opened = open_tracer()
    yield opened
    opened.close()
