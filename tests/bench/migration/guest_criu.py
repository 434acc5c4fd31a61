"""Runs in the machine that criu.py boots: a workload recorded, then pre-dumped by CRIU again and again.

Usage: python -m tests.bench.migration.guest_criu SHARED INTERVAL ROUNDS SECONDS,... WORKLOAD,...
SHARED/WORKLOAD becomes the recording. A pre-dump starts SECONDS after the one before it. Prints JSON.

The interval counts from one stop of the workload to the next: writes that it could not make while it was stopped
it makes afterwards.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.migration.stats import parse
from tests.support.redirty_cli import ProgramError, run_redirty
from tests.workloads.driver import Writer

MIB, PAGES = 64, 16_384
RATES = {"cyclic": 800, "uniform": 800, "hot_cold": 1_600, "bursty": 800, "zipf": 800}
_LIFE_S = 100_000
_SETTLE_S = 3.0


def main() -> int:
    """Measure all workloads, one after the other."""
    # CRIU probes the kernel's features for seconds when it runs for the first time.
    subprocess.run(
        ["criu", "check", "--feature", "mem_dirty_track"], capture_output=True, check=True
    )
    shared, interval, rounds, gaps, names = sys.argv[1:]
    found = []
    for name in names.split(","):
        with Writer(mib=MIB) as writer:
            writer.start(name, RATES[name], PAGES, _LIFE_S)
            time.sleep(_SETTLE_S)
            done = run_redirty(
                "record", "-q", "-p", writer.pid, interval, rounds, "-o", Path(shared, name),
                timeout_s=3600,
            )  # fmt: skip
            if done.code:
                raise ProgramError(f"redirty record ended with {done.code}: {done.err}")
            dumps = pre_dumps(writer.pid, [float(gap) for gap in gaps.split(",")])
            found += [{"workload": name, **dump} for dump in dumps]
            writer.signal(signal.SIGKILL)
    json.dump(found, sys.stdout)
    return 0


def pre_dumps(pid: int, gaps_s: Sequence[float]) -> list[dict[str, Any]]:
    """Make a pre-dump, and one more after each gap."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        due, before = time.monotonic(), 0.0
        for number, gap_s in enumerate((0.0, *gaps_s)):
            due += gap_s
            time.sleep(max(0.0, due - time.monotonic()))
            started = time.monotonic()
            images = _pre_dump(pid, Path(name), number)
            took_s = time.monotonic() - started
            stopped = started + seized((images / "log").read_text(errors="replace"))
            found.append(
                {
                    "number": number,
                    "after_s": stopped - before if number else 0.0,
                    "took_s": took_s,
                    **asdict(parse((images / "stats-dump").read_bytes())),
                }
            )
            before = stopped
    return found


def seized(log: str) -> float:
    """Return when the target was stopped, in seconds since CRIU's start.

    Raises: ProgramError.
    """
    found = re.search(r"^\((\d+\.\d+)\) Seized task", log, re.MULTILINE)
    if found is None:
        raise ProgramError("CRIU's log does not say when it stopped the target")
    return float(found[1])


def _pre_dump(pid: int, directory: Path, number: int) -> Path:
    images = directory / str(number)
    images.mkdir()
    argv = ["criu", "pre-dump", "--tree", str(pid), "--images-dir", str(images), "--track-mem"]
    argv += ["--shell-job", "-v4", "-o", "log"]
    if number:
        argv += ["--prev-images-dir", f"../{number - 1}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        log = images / "log"
        output = log.read_text(errors="replace")[-1500:] if log.exists() else ""
        raise ProgramError(f"criu ended with {done.returncode}: {done.stderr}{output}")
    return images


if __name__ == "__main__":
    sys.exit(main())
