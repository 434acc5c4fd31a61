"""Runs in the test VM: the traps, with one kind of probe and one arming method after the other.

Usage: guest_traps.py DIRECTORY WAY... Of a WAY, PROBE+ARM[:MARKERS], with markers (an expression of pytest's -m)
only such tests are run. DIRECTORY gets a NUMBER.json (tests/traps/results.py) and a NUMBER.log for each, numbered
in their order from 0.

Each way runs in a process forked from this one, which has imported what takes long to import.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

import pytest

from tests.vm.guest_probes import check_processor

PROJECT = Path(__file__).resolve().parents[2]
SLOW_IMPORTS = (
    "bcc",
    "numpy",
    "redirty.collector.tracking.host_check",
    "redirty.collector.recording.session",
)


def run(results: Path, way: str, marker: str) -> int:
    """Run the tests of one way in this process, which serves nothing else; return pytest's exit code."""
    probe, arm = way.split("+")
    # Before tests.support.tested_methods is imported, which reads the first two.
    os.environ |= {
        "REDIRTY_TEST_PROBE": probe,
        "REDIRTY_TEST_ARM": arm,
        "REDIRTY_REQUIRE": "1",
        "REDIRTY_TRAP_WAY": way,
        "REDIRTY_TRAP_RESULTS": str(results.with_suffix(".part")),
    }
    with results.with_suffix(".log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["PYTHONUNBUFFERED"] = "1"
    arguments = [str(PROJECT / "tests/traps"), "-v", "-p", "no:cacheprovider", "--durations=20"]
    if marker:
        arguments += ["-m", marker]
    code = int(pytest.main([*arguments, "--rootdir", str(PROJECT)]))
    results.with_suffix(".part").rename(results)  # complete, or not there
    return code


def main() -> int:
    """Run all ways; return 1 when a test failed."""
    check_processor()
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    directory = Path(sys.argv[1])
    worst = 0
    for number, word in enumerate(sys.argv[2:]):
        way, _, marker = word.partition(":")
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = run(directory / f"{number}.json", way, marker)
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        worst |= code != 0
        print(f"{word} ended with {code} in {time.monotonic() - started:.0f} s", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
