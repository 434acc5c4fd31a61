"""What a stop takes, measured by stopping the target as a mirror does."""

from __future__ import annotations

import json
import os
import signal

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.calibration.stop import measure_stop

from tests.support.redirty_cli import run_redirty
from tests.support.waiting import wait_until
from tests.workloads.driver import Checksum, Crowd

pytestmark = pytest.mark.usefixtures("tracing")

WORDS = ("--bandwidth", "1GB", "-d", "1s", "-q", "--json")


def test_a_live_target_is_stopped_and_unharmed() -> None:
    with Checksum(mib=8, threads=3) as target:
        done = run_redirty("predict", "-p", target.pid, *WORDS)
        assert done.code == 0, done
        found = json.loads(done.out)["parts"]
        steps = found["stop"]
        assert steps["freeze_s"] > 0 and steps["registers_s"] > 0 and steps["commit_s"] == 0
        assert found["stop_s"] == pytest.approx(
            steps["freeze_s"] + steps["arm_s"] + steps["registers_s"], abs=5e-6
        )
        given = json.loads(
            run_redirty("predict", "-p", target.pid, *WORDS, "--stop-cost", "9ms").out
        )
        assert given["parts"]["stop"]["freeze_s"] is None and given["parts"]["stop_s"] == 0.009
        assert target.stop().ok


def test_a_target_that_cannot_be_stopped_is_not_measured() -> None:
    with Crowd("threads", 1) as target:
        os.kill(target.pid, signal.SIGKILL)
        wait_until(lambda: not target.alive, "the end of the target")
        with pytest.raises((RedirtyError, OSError)):
            measure_stop(lambda: [target.pid])
