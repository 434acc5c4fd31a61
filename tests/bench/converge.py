"""Predictions made from an earlier recording, compared with the mirror that follows: over a veth pair between two
network namespaces, limited to a rate by tbf.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.figures import interval
from tests.bench.results import Row, not_run
from tests.support.netns import another_network, own_network, veth
from tests.support.redirty_cli import REDIRTY
from tests.workloads.driver import Writer

_MIB = 1 << 20
# of a frame of 1514 bytes TCP carries 1448, and TLS adds 22 bytes to 16 KiB
_CARRIED = 1448 / 1514 * 16384 / 16406
_RATES = (40.0, 48.0, 64.0, 80.0, 112.0)  # MiB/s on the link
_DOWNTIME = "100ms"
_BUCKET_S = 0.01  # of the link's rate


def rows(quick: bool) -> Iterator[Row]:
    """Return errors of the total time and of the bytes, over bandwidths and ways of writing."""
    total, transferred, notes = [], [], []
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as name,
        own_network(),
        another_network() as peer,
    ):
        veth(peer)
        made = _tc("add", _RATES[0])
        if made.returncode:
            yield not_run("mirror: predicted and done", f"no tbf here: {made.stderr.strip()}")
            return
        for pattern in ("uniform",) if quick else ("uniform", "hot_cold"):
            with Writer(192) as writer:
                writer.start(pattern, 6000, 192 * 256, 3600)
                recording = Path(name, pattern)
                words = ["record", "-p", str(writer.pid), "500ms", "-d", "10s", "-q"]
                subprocess.run([REDIRTY, *words, "-o", recording], check=True)
                for rate in _RATES[-2:] if quick else _RATES:
                    prediction, done = _one(writer.pid, recording, peer, rate, Path(name, "m"))
                    if done is None or not prediction["converges"]:
                        notes.append(f"{pattern} at {rate:g}: predicted {prediction['converges']}, "
                                     f"done {done is not None}")  # fmt: skip
                        continue
                    t, b = prediction["total_s"], prediction["transferred_bytes"]
                    total.append(abs(t / done["total_s"] - 1) * 100)
                    transferred.append(abs(b / done["bytes"] - 1) * 100)
                    print(
                        f"  {pattern} {rate:g} MiB/s: total {t:.2f} s, was {done['total_s']:.2f} s; "
                        f"{b / _MIB:.0f} MiB, were {done['bytes'] / _MIB:.0f} MiB; passes "
                        f"{len(prediction['passes'])}, were {len(done['passes'])}; downtime "
                        f"{prediction['downtime_s'] * 1e3:.0f} ms, was {done['downtime_s'] * 1e3:.0f} ms",
                        file=sys.stderr,
                    )
                writer.signal(signal.SIGKILL)
    note = "; ".join(notes)
    yield Row(
        "mirror: error of the predicted total time",
        figure=interval(total),
        unit="%",
        goal=5,
        note=note,
    )
    yield Row(
        "mirror: error of the predicted bytes", figure=interval(transferred), unit="%", goal=5
    )


def _tc(verb: str, rate: float) -> subprocess.CompletedProcess[str]:
    bits = int(rate * _MIB * 8)
    # Its timer is late on a busy machine: what a small bucket cannot hold meanwhile is lost to the rate.
    burst = int(rate * _MIB * _BUCKET_S)
    words = f"tc qdisc {verb} dev v0 root tbf rate {bits}bit burst {burst}b latency 50ms"
    return subprocess.run(words.split(), capture_output=True, text=True, check=False)


def _one(
    pid: int, recording: Path, peer: int, rate: float, to: Path
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    assert _tc("change", rate).returncode == 0
    useful = rate * _CARRIED
    predicted = subprocess.run(
        [
            REDIRTY,
            "predict",
            recording,
            "--bandwidth",
            f"{useful:.4f}MiB",
            "--downtime",
            _DOWNTIME,
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    prediction: dict[str, Any] = json.loads(predicted.stdout)
    code = to.with_name("code")
    listen = [str(w) for w in (REDIRTY, "receive", "--listen", "10.9.0.2:7411", "--to", to)]
    listen += ["--code-file", str(code)]
    with subprocess.Popen(
        ["nsenter", "-t", str(peer), "-n", *listen], stderr=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stderr
        assert re.search("listening", receiver.stderr.readline())
        time.sleep(0.1)
        words = ["-p", str(pid), "--to", "10.9.0.2:7411", "--code-file", str(code)]
        words += ["--bandwidth", f"{useful:.4f}MiB", "--downtime", _DOWNTIME, "--json"]
        done = subprocess.run(
            [REDIRTY, "mirror", *words], stdout=subprocess.PIPE, text=True, check=False
        )
        receiver.wait(60)
    subprocess.run(["rm", "-rf", to], check=True)
    return prediction, json.loads(done.stdout) if done.returncode == 0 else None
