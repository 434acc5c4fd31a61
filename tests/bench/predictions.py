"""The time a prediction takes: from a long recording, and on a live screen each round."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from redirty.collector.model.fit import fit
from redirty.collector.model.observations import Observations
from redirty.collector.model.predict import answer
from redirty.collector.model.prediction import Question
from redirty.collector.recording import columns

from tests.bench.figures import interval
from tests.bench.results import Row, number
from tests.support.known_writers import record, uniform, windows_of
from tests.support.redirty_cli import REDIRTY

_ROUNDS, _PAGES = 10_000, 10_000_000
_COMMAND_GOAL_S, _LIVE_GOAL_MS = 2.0, 5.0
_LIVE_ROUNDS = 300
_FIRST = 0x7F00_0000_0000
_AREA, _RATE = 2_000_000.0, 50_000.0  # pages, and writes to them per second


def rows(quick: bool) -> Iterator[Row]:
    """Measure `redirty predict` on a long recording, and the model alone on what a live session has observed."""
    rounds, pages = (1000, 1_000_000) if quick else (_ROUNDS, _PAGES)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "recording"
        _long_recording(directory, rounds, pages)
        size = sum(path.stat().st_size for path in directory.iterdir()) / (1 << 20)
        words = [str(REDIRTY), "predict", str(directory), "--bandwidth", "10Gbit"]
        seconds = [_seconds(words) for _ in range(3 if quick else 9)]
    floor = [_seconds([sys.executable, "-c", "import pandas"]) for _ in range(5)]
    yield Row(
        f"redirty predict: {rounds:,} rounds, {pages:,} pages",
        floor=f"{number(sorted(floor)[2])} s",
        figure=interval(seconds), unit="s", goal=_COMMAND_GOAL_S,
        note=f"{number(size)} MiB of files; floor: import pandas",
    )  # fmt: skip
    seen = record(uniform(20_000, 20_000.0), _LIVE_ROUNDS, 0.1, 60_000)
    times = [_live_ms(seen) for _ in range(21 if quick else 101)]
    yield Row(
        f"a live prediction, after {_LIVE_ROUNDS} rounds",
        figure=interval(times[1:]), unit="ms CPU", goal=_LIVE_GOAL_MS,
        note="fit, and what would happen with the curve and with both ends of its interval",
    )  # fmt: skip


def _live_ms(seen: Observations) -> float:
    started = time.process_time_ns()
    answer(fit(replace(seen)), Question(200e6, 0.3))
    return (time.process_time_ns() - started) / 1e6


def _seconds(words: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def _written(t: float) -> float:
    return float(-_AREA * np.expm1(-_RATE * t / _AREA))


def _long_recording(directory: Path, rounds: int, pages: int) -> None:
    """Write a recording of rounds of a second, with four mappings written in each, as a recorder would."""
    directory.mkdir()
    meta = {
        "schema": columns.SCHEMA, "page_size": 4096, "complete": True, "interval_s": 1.0,
        "target": {"description": "process 1", "comm": "bench"}, "probe": "none", "arm": "none",
    }  # fmt: skip
    (directory / "meta.json").write_text(json.dumps(meta))
    dirty = round(_written(1.0))
    with (directory / "rounds.csv").open("w", newline="\r\n") as file:
        file.write(",".join(columns.ROUNDS) + "\n")
        for n in range(rounds):
            file.write(
                f"{n},{n}.0,1.000000,0.002000,{pages},{dirty + n % 7},{dirty + n % 7},0,{dirty},"
                f"{dirty},0,{dirty},0,5,,0,0,0,0,0,,\n"
            )
    with (directory / "mappings.csv").open("w", newline="\r\n") as file:
        file.write(",".join(columns.MAPPINGS) + "\n")
        for n in range(rounds):
            for m in range(4):
                start = _FIRST + (m << 40)
                file.write(
                    f"{n},1,{start:#x},{start + (pages << 10):#x},rw-p,anon_private,,{pages // 4},"
                    f"{dirty // 4},{dirty // 4},{dirty // 4}\n"
                )
    _curves(directory / "curves.csv", rounds)
    with (directory / "pages.csv").open("w", newline="\r\n") as file:
        file.write(",".join(columns.PAGES) + "\n")
        for first in range(0, pages, 100_000):
            file.write(
                "".join(
                    f"1,{_FIRST + (page << 12):#x},anon_private,17,17,17,3,{rounds - 1}\n"
                    for page in range(first, min(first + 100_000, pages))
                )
            )


def _curves(path: Path, rounds: int) -> None:
    """Write curves with as many points as a curve needs, and more."""
    times = np.geomspace(1e-4, 0.95, 60).tolist()
    inside = [f"0,,{t:.6f},{_written(t):.6g},\n" for t in times]
    ends: dict[int, list[str]] = {}
    for first, length in windows_of(rounds):
        line = f"{first},{length},,{length}.000000,{_written(length):.8g},{_written(length):.0f}\n"
        classes = [line.replace(",,", ",anon_private,", 1)] if length & (length - 1) == 0 else []
        ends.setdefault(first + length - 1, []).extend([line, *classes])
    with path.open("w", newline="\r\n") as file:
        file.write(",".join(columns.CURVES) + "\n")
        for n in range(rounds):
            file.write("".join(f"{n},{line}" for line in inside) + "".join(ends[n]))
