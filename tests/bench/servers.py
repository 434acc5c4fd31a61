"""A server under load: redis, untouched, only armed, and traced."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from redirty.collector.arm.injection import Injector
from redirty.collector.attach.tracer import Options
from redirty.collector.host.targets import Pids
from redirty.collector.rounds import Recorder

from tests.bench.figures import Pairs, of_pairs
from tests.bench.table import Row, not_run
from tests.bench.table import of_pairs as row_of_pairs
from tests.bench.target import Probe

_REQUESTS = 60_000
_KEYS = 100_000
_VALUE_BYTES = 1024


def rows(quick: bool) -> Iterator[Row]:
    """Throughput of SET, by turns; below 1 is slower."""
    for program in ("redis-server", "redis-benchmark"):
        if not shutil.which(program):
            yield not_run("redis SET/s", f"needs {program} (Debian package redis)")
            return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not path.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"redis-server ended with {server.returncode}")
                time.sleep(0.01)
            yield from _compared(server.pid, path, 2 if quick else 8)
        finally:
            server.terminate()
            server.wait()


def _compared(pid: int, path: Path, count: int) -> Iterator[Row]:
    _load(path, _KEYS * 3, lambda: None, 1.0)  # so that nearly all keys are there
    with Probe(Options()) as probe:
        for interval_s in (1.0, 0.1):
            rates: dict[str, list[float]] = {"untouched": [], "armed": [], "traced": []}
            for number in range(count + 1):
                order = list(rates) if number % 2 else list(rates)[::-1]
                for mode in order:
                    rate = _measured(mode, probe, pid, path, interval_s)
                    if number:
                        rates[mode].append(rate)
            against_armed: Pairs = of_pairs(rates["traced"], rates["armed"])
            against_none: Pairs = of_pairs(rates["traced"], rates["untouched"])
            armed: Pairs = of_pairs(rates["armed"], rates["untouched"])
            name = f"redis SET, rounds of {interval_s:g} s:"
            note = "above 1 is quicker"
            yield row_of_pairs(f"{name} traced / armed only", against_armed, "SET/s", note=note)
            yield row_of_pairs(f"{name} traced / untouched", against_none, "SET/s")
            yield row_of_pairs(f"{name} armed only / untouched", armed, "SET/s")


def _measured(mode: str, probe: Probe, pid: int, path: Path, interval_s: float) -> float:
    if mode == "untouched":
        probe.detach()
        return _load(path, _REQUESTS, lambda: None, interval_s)
    injector = Injector()
    probe.attach()
    recorder = Recorder(probe.tracer, Pids([pid]), "uffd", injector)
    recorder.begin()
    try:
        if mode == "traced":
            return _load(path, _REQUESTS, recorder.end_round, interval_s)
        probe.detach()
        (space,) = recorder.spaces.values()

        def arm() -> None:
            space.look()
            space.arm()

        return _load(path, _REQUESTS, arm, interval_s)
    finally:
        recorder.close()
        injector.close()
        probe.empty()


def _load(path: Path, requests: int, round_: Callable[[], object], interval_s: float) -> float:
    """SET per second, while a round ends every interval."""
    process = subprocess.Popen(
        [
            *("redis-benchmark", "-s", str(path), "-t", "set", "-n", str(requests), "--csv"),
            *("-r", str(_KEYS), "-d", str(_VALUE_BYTES), "-c", "10"),
        ],
        stdout=subprocess.PIPE,
    )
    due = time.monotonic() + interval_s
    while process.poll() is None:
        try:
            process.wait(max(0.0, due - time.monotonic()))
        except subprocess.TimeoutExpired:
            round_()
            due += interval_s
    assert process.stdout is not None
    table = list(csv.DictReader(io.StringIO(process.stdout.read().decode())))
    process.stdout.close()
    return float(table[0]["rps"])
