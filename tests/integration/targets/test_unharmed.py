"""Targets in each state are unharmed by what is done by ptrace: tests/torture/unharmed.py in short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.kill_points import SEED
from tests.tiers import require
from tests.torture.unharmed import ACTIONS, STATES, freezers, run

pytestmark = pytest.mark.usefixtures("tracing")

TIMES = int(os.environ.get("REDIRTY_UNHARMED", "5"))
CASES = [(state, action, kill) for state in STATES for action in ACTIONS for kill in (False, True)]


@pytest.mark.parametrize(("state", "action", "kill"), CASES)
def test_unharmed(state: str, action: str, kill: bool) -> None:
    if state.startswith(("frozen", "thawing")):
        version = "v1" if state.endswith("v1") else "v2"
        require(version in freezers(), f"needs a cgroup freezer of {version}")
    if state.startswith("throttled"):
        require(Path("/sys/fs/cgroup/cpu").is_dir(), "needs the cpu controller of cgroup v1")
    outcomes = run(state, action, TIMES, SEED, kill=kill)
    print(f"REDIRTY_SEED={SEED}: {dict(outcomes)}")
    assert outcomes
    if kill:
        return
    if state in ("quiet", "forking", "crowded"):
        assert outcomes["done"] == TIMES, outcomes
    if state.startswith("frozen") and action == "inject":
        assert outcomes["done"] == 0, outcomes
