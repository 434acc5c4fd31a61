"""The fixtures of tests/support, with one log for all traps: on an emulated machine it takes long to compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redirty.collector.bpf.tracer import Tracer

from tests.support.fixtures import root, sleeper, start, target, tracing
from tests.support.stepped_rounds import open_tracer
from tests.traps.results import Plugin

__all__ = ["root", "sleeper", "start", "target", "tracing"]


def pytest_configure(config: pytest.Config) -> None:
    """The table at the end."""
    config.pluginmanager.register(Plugin(), "redirty-traps")


@pytest.fixture(scope="session")
def tracer(tracing: None) -> Iterator[Tracer]:
    """One log for all tests."""
    opened = open_tracer()
    yield opened
    opened.close()
