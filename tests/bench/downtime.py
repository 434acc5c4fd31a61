"""Is the downtime that was asked for kept? Mirrors with many goals, on an idle and on a busy machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.figures import Interval, interval
from tests.bench.results import Row
from tests.support.receiver import receive
from tests.support.redirty_cli import REDIRTY
from tests.support.standstill import Standstill
from tests.workloads.driver import Writer

_GOALS_MS = (50, 70, 100, 140, 200, 280, 400, 560, 800, 1000)
_DESTINATIONS = ("directory", "loopback", "loopback, compressed")
_ALLOWED = 1.1
_SHM = "/dev/shm"
# MiB of the target, pages a second, pages that are written
_TARGETS = ((64, 2_000, 4_000), (160, 9_000, 12_000), (320, 20_000, 40_000))


@dataclass(frozen=True)
class Kept:
    """A mirror: the downtime asked for, and what became of it.

    Attributes:
        goal_s: asked for.
        stops_s: how long each stop lasted, by redirty.
        seen_s: the longest one, as seen from outside; at most as long as it was.
        said: redirty says that it exceeded the downtime, or there is no mirror.
        code: its exit code.
        settings: destination and options.
    """

    goal_s: float
    stops_s: tuple[float, ...]
    seen_s: float
    said: bool
    code: int
    settings: str

    @property
    def ratio(self) -> float:
        """The longest stop as a multiple of the downtime asked for."""
        return max(self.seen_s, *self.stops_s, 0.0) / self.goal_s

    def __str__(self) -> str:
        """Return a line about it."""
        stops = " ".join(f"{s * 1e3:.1f}" for s in self.stops_s)
        return (
            f"  {self.ratio:.3f} of {self.goal_s * 1e3:.0f} ms, exit {self.code}, said {self.said}, "
            f"stops [{stops}] ms, seen {self.seen_s * 1e3:.1f}, {self.settings}"
        )


def rows(quick: bool) -> Iterator[Row]:
    """Make 100 mirrors, half of them verified, half of them while the machine is busy."""
    count = 12 if quick else 50
    for busy in (False, True):
        with _busy() if busy else contextlib.nullcontext():
            found = []
            for one in _mirrors(count):
                print(one, file=sys.stderr, flush=True)
                found.append(one)
        yield from _rows_of(found, "busy" if busy else "idle")


def _rows_of(found: list[Kept], machine: str) -> Iterator[Row]:
    ratios = np.array([k.ratio for k in found])
    made = [k for k in found if k.code == 0]
    unsaid = sum(k.ratio > _ALLOWED and not k.said for k in found)
    shares = ", ".join(f"{q} % {np.percentile(ratios, q):.2f}" for q in (10, 50, 90, 99, 100))
    retried = sum(len(k.stops_s) > 1 for k in found)
    yield Row(
        f"downtime: mirrors that stood still 1.1 x longer than asked without a word, {machine} machine",
        figure=Interval(float(unsaid), float(unsaid), float(unsaid), len(found)),
        unit="",
        goal=0,
        note=f"{len(made)} of {len(found)} mirrors made, {retried} with more than one stop",
    )
    yield Row(
        f"downtime: longest stop, as a multiple of what was asked, {machine} machine",
        figure=interval(ratios.tolist()),
        unit="",
        goal=_ALLOWED,
        note=shares,
    )


def _mirrors(count: int) -> Iterator[Kept]:
    kinds = itertools.cycle(itertools.product(_TARGETS, _DESTINATIONS))
    goals = itertools.cycle(_GOALS_MS)
    for number in range(count):
        (mib, rate, pages), destination = next(kinds)
        with Writer(mib) as target, tempfile.TemporaryDirectory(dir=_SHM) as name:
            target.start("uniform", rate, pages, seed=number + 1)
            verify = ("--verify",) if number % 2 else ()
            yield _mirror(target.pid, Path(name), next(goals) / 1e3, destination, verify)


def _mirror(pid: int, folder: Path, goal_s: float, destination: str, more: tuple[str, ...]) -> Kept:
    words = ["--downtime", f"{goal_s * 1e3:.0f}ms", "--json-lines", *more]
    if destination.endswith("compressed"):
        words.append("--compress")
    with contextlib.ExitStack() as stack:
        to = str(folder / "m")
        if destination != "directory":
            other = stack.enter_context(receive(folder / "m", folder / "log"))
            to = f"127.0.0.1:{other.port}"
        watch = stack.enter_context(Standstill(pid))
        done = subprocess.run(
            [REDIRTY, "mirror", "-p", str(pid), "--to", to, *words],
            capture_output=True,
            text=True,
            check=False,
        )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    made = [e["mirror"] for e in events if e["event"] == "done"]
    stops: tuple[float, ...] = ()
    said = done.returncode != 0
    if made:
        before = [f["downtime_s"] for f in made[0].get("failed_stops", ())]
        stops = (*before, made[0]["downtime_s"])
        said = made[0].get("kept_downtime") is False
    settings = " ".join([destination, *more])
    if not made:
        settings += f": {done.stderr.splitlines()[-1]}"
    return Kept(goal_s, stops, watch.longest_s, said, done.returncode, settings)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Keep every processor busy with three programs that compute."""
    program = "while True: pass"
    count = 3 * (os.cpu_count() or 1)
    crowd = [subprocess.Popen([sys.executable, "-I", "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for one in crowd:
            one.kill()
            one.wait()
