"""Predictions with the copier's own speed, compared with the mirror that follows, which no rate limits: to a
directory, over the loopback with and without compression, and over a veth pair with TLS.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.figures import interval
from tests.bench.results import Row
from tests.support.netns import another_network, own_network, veth
from tests.support.redirty_cli import REDIRTY
from tests.workloads.driver import Writer

_SHM = "/dev/shm"
_DOWNTIME = "300ms"
_GOAL = 10.0  # percent
_MIB, _RATE, _PAGES = 1024, 6_000, 1024 * 256  # of the target
_PORT = 7412


@dataclass(frozen=True)
class _Kind:
    """A kind of destination. destination: as predict names it; far: in another network; more: options of mirror."""

    name: str
    destination: str
    far: bool = False
    more: tuple[str, ...] = ()


_KINDS = (
    _Kind("to a directory", f"local:{_SHM}"),
    _Kind("over loopback", "tcp"),
    _Kind("over loopback, compressed", "tcp+zstd", more=("--compress",)),
    _Kind("over veth with TLS", "tls", far=True),
)


def rows(quick: bool) -> Iterator[Row]:
    """Return the errors of total time and downtime for each kind of destination."""
    with (
        tempfile.TemporaryDirectory(dir=_SHM) as name,
        own_network(),
        another_network() as peer,
        Writer(_MIB) as target,
    ):
        veth(peer)
        target.start("uniform", _RATE, _PAGES)
        for kind in _KINDS:
            yield from _rows_of(kind, target.pid, peer, Path(name), 2 if quick else 7)
        target.signal(signal.SIGKILL)


def _rows_of(kind: _Kind, pid: int, peer: int, folder: Path, count: int) -> Iterator[Row]:
    totals, downtimes = [], []
    for _ in range(count):
        predicted = _predicted(kind, pid)
        done = _mirror(kind, pid, peer, folder)
        print(
            f"  {kind.name}: total {predicted['total_s']:.3f} s, was {done['total_s']:.3f} s; downtime "
            f"{predicted['downtime_s'] * 1e3:.1f} ms, was {done['downtime_s'] * 1e3:.1f} ms; passes "
            f"{len(predicted['passes'])}, were {len(done['passes'])}",
            file=sys.stderr,
        )
        totals.append((predicted["total_s"] / done["total_s"] - 1) * 100)
        downtimes.append((predicted["downtime_s"] / done["downtime_s"] - 1) * 100)
    yield _row(f"mirror {kind.name}: error of the predicted total time", totals)
    yield _row(f"mirror {kind.name}: error of the predicted downtime", downtimes)


def _row(name: str, errors: Sequence[float]) -> Row:
    signed = interval(errors)
    return Row(
        name,
        figure=interval([abs(e) for e in errors]),
        unit="%",
        goal=_GOAL,
        note=f"signed median {signed.median:+.1f} %",
    )


def _predicted(kind: _Kind, pid: int) -> dict[str, Any]:
    words = ["-p", pid, "--bandwidth", "1TB", "--downtime", _DOWNTIME, "--destination"]
    words += [kind.destination, "-d", "3s", "--zeros", "-q", "--json"]
    done = subprocess.run(
        [REDIRTY, "predict", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _mirror(kind: _Kind, pid: int, peer: int, folder: Path) -> dict[str, Any]:
    """Return mirror.json."""
    with tempfile.TemporaryDirectory(dir=folder) as name, contextlib.ExitStack() as stack:
        to, more = Path(name, "m"), list(kind.more)
        where = str(to)
        if not kind.destination.startswith("local"):
            where = f"{'10.9.0.2' if kind.far else '127.0.0.1'}:{_PORT}"
            listen = [str(w) for w in (REDIRTY, "receive", "--listen", where, "--to", to)]
            if kind.far:
                code = str(Path(name, "code"))
                listen = ["nsenter", "-t", str(peer), "-n", *listen, "--code-file", code]
                more += ["--code-file", code]
            receiver = stack.enter_context(
                subprocess.Popen(listen, stderr=subprocess.PIPE, text=True)
            )
            assert receiver.stderr
            assert re.search("listening", receiver.stderr.readline())
        words = ["mirror", "-p", str(pid), "--to", where, "--downtime", _DOWNTIME, "--json", *more]
        done = subprocess.run([REDIRTY, *words], stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found
