"""A server under load: redis, untouched, only armed, and traced."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from redirty.collector.bpf.loader import Options
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import Pids
from redirty.collector.tracking.rounds import Recorder

from tests.bench.figures import of_pairs
from tests.bench.results import Row, not_run
from tests.bench.results import of_pairs as row_of_pairs
from tests.bench.target import Probe, cpu_ns

_REQUESTS = 60_000
_KEYS = 100_000
_VALUE_BYTES = 1024
_MODES = ("untouched", "armed only", "traced")


@dataclass(frozen=True)
class Load:
    """The results of redis-benchmark: SETs per second, and the server's processor time for one.

    The second does not depend on other processes that want the processors.
    """

    per_s: float
    cpu_us: float


def rows(quick: bool) -> Iterator[Row]:
    """Measure the throughput of SET, by turns; below 1 is slower."""
    for program in ("redis-server", "redis-benchmark"):
        if not shutil.which(program):
            yield not_run("redis SET/s", f"needs {program} (Debian package redis)")
            return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        server = subprocess.Popen(
            [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                str(path),
                "--save",
                "",
                "--dir",
                directory,
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not path.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"redis-server ended with {server.returncode}")
                time.sleep(0.01)
            yield from _compared(server.pid, path, 2 if quick else 10)
        finally:
            server.terminate()
            server.wait()


def _compared(pid: int, path: Path, count: int) -> Iterator[Row]:
    _load(pid, path, _KEYS * 3, lambda: None, 1.0)  # so that nearly all keys are there
    with Probe(Options()) as probe:
        for interval_s in (1.0, 0.1):
            found: dict[str, list[Load]] = {mode: [] for mode in _MODES}
            for number in range(count + 1):
                for mode in _MODES if number % 2 else _MODES[::-1]:
                    load = _measured(mode, probe, pid, path, interval_s)
                    if number:
                        found[mode].append(load)
            for mode, floor in (
                ("traced", "armed only"),
                ("traced", "untouched"),
                ("armed only", "untouched"),
            ):
                name = f"redis, rounds of {interval_s:g} s: {mode} / {floor}"
                a, b = found[mode], found[floor]
                rates = of_pairs([x.per_s for x in a], [x.per_s for x in b])
                yield row_of_pairs(f"{name}, throughput", rates, "SET/s", note="above 1: quicker")
                costs = of_pairs([x.cpu_us for x in a], [x.cpu_us for x in b])
                yield row_of_pairs(f"{name}, its CPU", costs, "us/SET", note="above 1: dearer")


def _measured(mode: str, probe: Probe, pid: int, path: Path, interval_s: float) -> Load:
    if mode == "untouched":
        probe.detach()
        return _load(pid, path, _REQUESTS, lambda: None, interval_s)
    injector = Injector()
    probe.attach()
    recorder = Recorder(probe.tracer, Pids([pid]), "uffd", injector)
    recorder.begin()
    try:
        if mode == "traced":
            return _load(pid, path, _REQUESTS, recorder.end_round, interval_s)
        probe.detach()
        (space,) = recorder.spaces.values()

        def arm() -> None:
            space.refresh()
            space.arm()

        return _load(pid, path, _REQUESTS, arm, interval_s)
    finally:
        recorder.close()
        injector.close()
        probe.empty()


def _load(
    pid: int, path: Path, requests: int, round_: Callable[[], object], interval_s: float
) -> Load:
    """Have SETs sent while a round ends every interval."""
    before = cpu_ns(pid)
    words = ["redis-benchmark", "-s", str(path), "-t", "set", "-n", str(requests), "--csv"]
    words += ["-r", str(_KEYS), "-d", str(_VALUE_BYTES), "-c", "10"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
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
    return Load(float(table[0]["rps"]), (cpu_ns(pid) - before) / 1e3 / requests)
