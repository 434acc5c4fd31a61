"""Verdicts about servers, compared with mirrors at five bandwidths, and over ten minutes of a constant load."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from redirty.collector.analyze.observations import observe
from redirty.collector.units import show_bits
from redirty.tui.readers.model_schedule import ModelSchedule
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import History

from tests.bench.figures import Interval, interval
from tests.bench.results import Row
from tests.support.redirty_cli import REDIRTY
from tests.support.servers import Redis, postgres, redis
from tests.support.shared_program import shared_program

_FACTORS = (0.5, 0.75, 1.35, 2.0, 4.0)  # of the smallest bandwidth that suffices
_SHM = "/dev/shm"
_LIVE_RATES = (5e6, 12.5e6, 50e6)  # 40, 100 and 400 Mbit/s
_SETS_PER_S = 2_000
_KEYS, _VALUE_BYTES = 50_000, 512
_BATCH = 20


@dataclass
class _Found:
    """Verdicts by how they came out."""

    right: int = 0
    uncertain: int = 0
    wrong: int = 0


def rows(quick: bool) -> Iterator[Row]:
    """Compare verdicts with mirrors, and with each other over time."""
    yield from _servers(quick)
    yield from _steady(60 if quick else 600)


def _servers(quick: bool) -> Iterator[Row]:
    targets: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[int]], str]] = {
        "PostgreSQL, 4 clients": (lambda: _postgres(4), "300ms"),
        # To arm 60 processes takes some 300 ms by itself where two processors also run them.
        "PostgreSQL, 53 clients": (lambda: _postgres(53), "1s"),
        "prefork": (lambda: _shared("prefork"), "300ms"),
        "memfd in two programs": (lambda: _shared("memfd"), "300ms"),
    }
    errors: list[float] = []
    found = _Found()
    for name, (run, downtime) in list(targets.items())[-1:] if quick else targets.items():
        with run() as pid, tempfile.TemporaryDirectory(dir=_SHM) as folder:
            errors += _compare(name, pid, Path(folder), downtime, found)
    yield Row(
        "servers with shared memory: error of the predicted first pass",
        figure=interval([abs(e) * 100 for e in errors]),
        unit="%",
        goal=5,
    )
    total = found.right + found.uncertain + found.wrong
    yield Row(
        "servers with shared memory: wrong verdicts, five bandwidths each",
        figure=Interval(float(found.wrong), float(found.wrong), float(found.wrong), total),
        unit="",
        goal=0,
        note=f"{found.right} right, {found.uncertain} uncertain",
    )


def _compare(name: str, pid: int, folder: Path, downtime: str, found: _Found) -> list[float]:
    """Record a tree, and mirror it at five bandwidths; return the error of the first pass, if one was made."""
    recording = folder / "rec"
    words = ["record", "--tree", pid, "500ms", "-d", "20s", "-q", "--zeros", "-o", recording]
    subprocess.run([REDIRTY, *map(str, words)], check=True)
    needed = _predict(recording, 1e9, downtime)["min_bandwidth_bytes_per_s"]
    error: list[float] = []
    for factor in _FACTORS:
        rate = needed * factor
        predicted = _predict(recording, rate, downtime)
        done = _mirror(pid, folder / "m", rate, downtime)
        verdict = predicted["verdict"]
        if verdict == "uncertain":
            found.uncertain += 1
        elif (verdict == "converges") is (done is not None):
            found.right += 1
        else:
            found.wrong += 1
        came = "not made"
        if done is not None:
            error = [predicted["passes"][0]["bytes"] / done["passes"][0]["bytes"] - 1]
            came = (
                f"made, stopped for {done['downtime_s'] * 1e3:.0f} ms, first pass {error[0]:+.1%}"
            )
        print(
            f"  {name} at {show_bits(rate)} ({factor:g} of the least): {verdict}; {came}",
            file=sys.stderr,
            flush=True,
        )
    return error


def _predict(recording: Path, rate: float, downtime: str) -> dict[str, Any]:
    words = ["predict", recording, "--bandwidth", f"{rate:.0f}B", "--downtime", downtime, "--json"]
    done = subprocess.run(
        [REDIRTY, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _mirror(pid: int, to: Path, rate: float, downtime: str) -> dict[str, Any] | None:
    """Return mirror.json; None if there is no mirror."""
    words = [
        "mirror",
        "--tree",
        pid,
        "--to",
        to,
        "--bandwidth",
        f"{rate:.0f}B",
        "--downtime",
        downtime,
    ]
    done = subprocess.run(
        [REDIRTY, *map(str, words), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    subprocess.run(["rm", "-rf", to], check=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


@contextlib.contextmanager
def _postgres(clients: int) -> Iterator[int]:
    with postgres() as server:
        server.fill(scale=3)
        with server.load(clients=clients):
            server.server.wait_ready(
                lambda: int(server.sql("select count(*) from pgbench_history")) > 500
            )
            yield server.pid


@contextlib.contextmanager
def _shared(kind: str) -> Iterator[int]:
    with (
        tempfile.TemporaryDirectory() as folder,
        shared_program(kind, Path(folder)) as server,
    ):
        yield server.pid


# ---- a live server ----


def _steady(seconds: int) -> Iterator[Row]:
    """Return how often the verdict about a redis under a constant load changes, as a live screen shows it."""
    with redis() as server, _constant_load(server), tempfile.TemporaryDirectory() as folder:
        time.sleep(_KEYS / _SETS_PER_S)  # until most keys are there
        recording = Path(folder, "rec")
        words = ["record", "-p", server.pid, "1s", "-d", f"{seconds}s", "-q", "-o", recording]
        subprocess.run([REDIRTY, *map(str, words)], check=True)
        seen = observe(recording)
    for rate in _LIVE_RATES:
        schedule, verdicts = ModelSchedule(), []
        for count in range(10, seen.rounds + 1):
            schedule.expire()
            part = seen.until(count)
            question = ConvergenceQuestion(rate)
            shown = schedule.answer(lambda p=part: p, History().mappings(), question, force=False)  # type: ignore[misc]
            assert shown is not None
            verdicts.append(shown.good)
        changes = sum(a is not b for a, b in pairwise(verdicts))
        names = {True: "converges", False: "does not converge", None: "uncertain"}
        counts = ", ".join(f"{verdicts.count(v)} x {n}" for v, n in names.items() if v in verdicts)
        yield Row(
            f"redis, {_SETS_PER_S} SET/s, {seconds} s, verdict at {show_bits(rate)}: changes",
            figure=Interval(float(changes), float(changes), float(changes), len(verdicts)),
            unit="",
            goal=0,
            note=counts,
        )


@contextlib.contextmanager
def _constant_load(server: Redis) -> Iterator[None]:
    """Set random keys at a pace, however busy the machine is."""
    stop = threading.Event()
    load = threading.Thread(target=_set_keys, args=(str(server.socket), stop), daemon=True)
    load.start()
    try:
        yield
    finally:
        stop.set()
        load.join()


def _set_keys(path: str, stop: threading.Event) -> None:
    rng = random.Random(1)
    value = "x" * _VALUE_BYTES
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        due = time.monotonic()
        while not stop.is_set():
            lines = []
            for _ in range(_BATCH):
                key = f"key:{rng.randrange(_KEYS)}"
                lines.append(
                    f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n"
                )
            connection.sendall("".join(lines).encode())
            left = _BATCH * len(b"+OK\r\n")
            while left:
                left -= len(connection.recv(left))
            due += _BATCH / _SETS_PER_S
            stop.wait(max(due - time.monotonic(), 0.0))
