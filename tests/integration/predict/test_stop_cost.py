"""Measure what a stop takes, by stopping the target as a mirror does."""

from __future__ import annotations

import json

import pytest

from tests.support.redirty_cli import run_redirty
from tests.workloads.driver import Checksum

pytestmark = pytest.mark.usefixtures("tracing")

WORDS = ("--bandwidth", "1GB", "-d", "1s", "-q", "--json")
STEPS = ("freeze", "arm", "scan", "flush", "registers")


def test_a_live_target_is_stopped_and_unharmed() -> None:
    with Checksum(mib=8, threads=3) as target:
        done = run_redirty("predict", "-p", target.pid, *WORDS)
        assert done.code == 0, done
        found = json.loads(done.out)["parts"]
        steps = found["stop"]
        assert all(steps[f"{name}_s"] > 0 for name in STEPS)
        assert steps["commit_s"] == 0 and not steps["given"] and not steps["boundaries"]
        assert found["stop_s"] == pytest.approx(sum(steps[f"{name}_s"] for name in STEPS), abs=5e-6)
        given = json.loads(
            run_redirty("predict", "-p", target.pid, *WORDS, "--stop-cost", "9ms").out
        )
        assert given["parts"]["stop"]["freeze_s"] is None and given["parts"]["stop_s"] == 0.009
        assert target.stop().ok
