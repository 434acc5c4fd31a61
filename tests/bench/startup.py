"""The time a user waits for redirty to start."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from redirty.collector.arming.methods import choose
from redirty.collector.bpf import btf
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import Pids
from redirty.collector.tracking.rounds import Recorder

from tests.bench.figures import interval, median, pairs
from tests.bench.results import Row, not_run, number
from tests.support.redirty_cli import REDIRTY
from tests.workloads.driver import Sweep

_HELP_GOAL_S, _RECORD_GOAL_S = 0.15, 1.5
_TIMEOUT_S = 30.0
_IMPORTS = "import redirty.collector.recording.session, bcc"


def rows(quick: bool) -> Iterator[Row]:
    """Measure redirty --help, and redirty record until the first round is armed."""
    if not REDIRTY.exists():
        yield not_run("redirty --help", f"{REDIRTY} is missing: make setup")
        return
    count = 5 if quick else 21
    found = pairs(
        lambda: _seconds([str(REDIRTY), "--help"]),
        lambda: _seconds([sys.executable, "-c", "pass"]),
        count,
    )
    python = f"{number(found.floor.median)} s"
    yield Row(
        "redirty --help", floor=python, figure=found.measured, unit="s", goal=_HELP_GOAL_S,
        note="floor: python -c pass",
    )  # fmt: skip
    with Sweep(64) as sweep:
        waits = [_first_arm(sweep.pid) for _ in range(3 if quick else 9)]
        steps = [_steps(sweep.pid) for _ in range(3)]
    parts = ", ".join(f"{name} {number(median([s[name] for s in steps]))}" for name in steps[0])
    yield Row(
        "redirty record, to the first armed round", figure=interval(waits), unit="s",
        goal=_RECORD_GOAL_S, note=f"s: {parts}",
    )  # fmt: skip


def _seconds(words: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def _first_arm(pid: int) -> float:
    """Measure the time until the recording's directory appears, which is when the first round has started."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "recording"
        started = time.monotonic()
        process = subprocess.Popen(
            [str(REDIRTY), "record", "-q", "-p", str(pid), "60", "-o", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not out.exists():
                if process.poll() is not None or time.monotonic() > started + _TIMEOUT_S:
                    raise RuntimeError(f"redirty record ended with {process.poll()} or hangs")
                time.sleep(0.001)
            return time.monotonic() - started
        finally:
            process.terminate()
            process.wait()


def _steps(pid: int) -> dict[str, float]:
    """Run the same steps one by one, in this process; only the imports in one of their own."""
    spent = {"imports": _seconds([sys.executable, "-c", _IMPORTS])}
    injector = Injector()
    started = time.monotonic()

    def step(name: str) -> None:
        nonlocal started
        now = time.monotonic()
        spent[name] = now - started
        started = now

    way = choose("auto", injector)
    step("try arming")
    btf.load()
    step("BTF (part of load)")
    tracer = Tracer(Options())
    step("load and attach")
    recorder = Recorder(tracer, Pids([pid]), way, injector)
    recorder.begin()
    step("arm")
    recorder.close()
    tracer.close()
    injector.close()
    return spent
