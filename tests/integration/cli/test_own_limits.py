"""redirty that runs out of its own file descriptors says so: it never takes that for the end of the target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.error_assertions import COULD_NOT, TARGET_ENDED
from tests.support.redirty_cli import PATIENT_GOALS, run_redirty
from tests.workloads.driver import Checksum

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.mark.parametrize("verb", ["record", "mirror"])
def test_few_descriptors(verb: str, tmp_path: Path) -> None:
    """From a limit with which nothing works to one with which everything does."""
    codes = []
    with Checksum(threads=2, mib=1) as target:
        for limit in (24, 44, 60, 512):
            where = tmp_path / f"{verb}{limit}"
            words = (
                ["200ms", "2", "-o", where] if verb == "record" else ["--to", where, *PATIENT_GOALS]
            )
            done = run_redirty(
                verb, "-p", target.pid, *words, wrapper=("prlimit", f"--nofile={limit}:{limit}")
            )
            assert done.code != TARGET_ENDED, done
            assert "ended" not in done.err and "Traceback" not in done.err, done
            if done.code:
                assert done.code == COULD_NOT, done
                assert "open files" in done.err or "descriptors" in done.err, done
            codes.append(done.code)
        assert target.stop().errors == 0
    assert codes[-1] == 0, "the last limit is enough"


def test_the_limit_is_raised(tmp_path: Path) -> None:
    """A soft limit that is too low does not matter as long as the hard one is not."""
    with Checksum(threads=2, mib=1) as target:
        done = run_redirty(
            *("record", "-p", target.pid, "200ms", "2", "-o", tmp_path / "r"),
            wrapper=("prlimit", "--nofile=24:4096"),
        )
    assert done.code == 0, done


def test_a_command_keeps_its_limit(tmp_path: Path) -> None:
    """A program that uses select(2) must not get descriptors above 1,023 because redirty runs it."""
    script = f"ulimit -n > {tmp_path}/limit"
    done = run_redirty(
        *("record", "-o", tmp_path / "r", "--", "sh", "-c", script),
        wrapper=("prlimit", "--nofile=512:4096"),
    )
    assert done.code in (0, TARGET_ENDED), done  # it may be too short for a round
    assert (tmp_path / "limit").read_text().strip() == "512"
