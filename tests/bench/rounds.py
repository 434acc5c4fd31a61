"""The cost of a round to the collector, in processor time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.figures import interval
from tests.bench.results import Row, not_run, number
from tests.bench.target import available_mib

_ROOT = Path(__file__).resolve().parents[2]
_SPARE_MIB = 1024
_CASES = (
    # name, MiB mapped, kind, pages dirty, rounds, most CPU in ms, most memory in MiB
    ("1,000,000 dirty, 4 KiB pages", 4096, "anon", 1_000_000, 9, 60.0, 100.0),
    ("1,000,000 dirty, huge pages", 4096, "thp", 1_000_000, 9, 60.0, 100.0),
    ("16 GiB mapped, 1,000 dirty, 4 KiB pages", 16384, "anon", 1_000, 41, 15.0, None),
    ("16 GiB mapped, 1,000 dirty, huge pages", 16384, "thp", 1_000, 41, 15.0, None),
)


def rows(quick: bool) -> Iterator[Row]:
    """Measure each case in a process of its own, so that memory is not what another case left."""
    for name, mib, kind, dirty, rounds, cpu_goal, memory_goal in _CASES:
        title = f"collector, a round: {name}"
        if quick and mib > 4096:
            yield not_run(title, "left out by --quick")
            continue
        if available_mib() < mib + _SPARE_MIB:
            yield not_run(title, f"needs {mib + _SPARE_MIB} MiB of free memory")
            continue
        found = _run(mib, kind, dirty, 5 if quick else rounds)
        cpu = interval([ns / 1e6 for ns in found["cpu_ns"]])
        parts = ", ".join(f"{k} {number(v / 1e6)}" for k, v in found["parts_ns"].items())
        note = f"{found['dirty']:,} pages found dirty; ms: {parts}"
        yield Row(title, figure=cpu, unit="ms CPU", goal=cpu_goal, note=note)
        if memory_goal is not None:
            memory = found["added_kib"] / 1024
            sums = found["sums_ns"] / 1e6
            note = f"pages.csv, every 10 s and at the end, takes {number(sums)} ms more"
            yield Row(
                f"{title}: memory added",
                figure=interval([memory]),
                unit="MiB",
                goal=memory_goal,
                note=note,
            )


def _run(mib: int, kind: str, dirty: int, rounds: int) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench.one_round", str(mib), kind, str(dirty), str(rounds)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer
