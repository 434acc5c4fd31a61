"""QEMU's live migration next to a mirror of the same guest: over the same veth pair, limited to a rate by tbf."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.migration.guests import GuestError, Machine
from tests.bench.migration.move import Terms, move
from tests.bench.migration.workloads import WORKLOADS, Workload, critical_bandwidth
from tests.support.netns import another_network, own_network, veth
from tests.support.redirty_cli import REDIRTY
from tests.support.servers import scratch
from tests.vm.kernels import Kernel

_CARRIED = 1448 / 1514 * 16384 / 16406  # of a frame; see converge.py
_BUCKET_S = 0.01
_PATIENCE_S = 120.0
_SETTLED_LINES = 4
DOWNTIME_S = 0.3
_ADDRESS = "10.9.0.2"

Found = dict[str, Any]


def measured(kernel: Kernel, names: list[str], factors: list[float]) -> Iterator[Found]:
    """Measure each workload at each bandwidth (in critical ones): what both needed.

    Each time a new guest is mirrored first, as it is gone after its migration.

    Raises: GuestError, QmpError, OSError.
    """
    for name in names:
        load = WORKLOADS[name]()
        assert load.distinct is not None
        critical = critical_bandwidth(load.distinct, DOWNTIME_S)
        for factor in factors:
            with own_network(), another_network() as peer, scratch("peers") as work:
                veth(peer)
                yield {
                    **_one(kernel, load, peer, work, critical * factor),
                    "workload": name,
                    "factor": factor,
                }


def _one(kernel: Kernel, load: Workload, peer: int, work: Path, bandwidth: float) -> Found:
    """Measure one workload. bandwidth: of the contents, bytes per second."""
    link = bandwidth / _CARRIED
    words = f"tc qdisc add dev v0 root tbf rate {link * 8:.0f}bit latency 50ms"
    subprocess.run([*words.split(), "burst", f"{link * _BUCKET_S:.0f}b"], check=True)
    over = ["nsenter", "-t", str(peer), "-n"]
    with Machine(work, 0, kernel, load) as source:
        source.wait_lines(_SETTLED_LINES)
        started, waited = time.monotonic(), waited_s()
        ours = _mirrored(source, over, work, bandwidth)
        source.wait_lines(2)
        uri = f"tcp:{_ADDRESS}:7412"
        with Machine(work, 1, kernel, load, arriving=True, uri=uri, wrapper=over) as destination:
            before = sent_bytes()
            terms = Terms(load.name, round(bandwidth), DOWNTIME_S, _PATIENCE_S)
            real = move(source, destination, terms).real
            theirs: Found = {"bytes": sent_bytes() - before, "passes": real.passes + 1}
            if not real.converged:
                theirs["why"] = real.status
            else:
                theirs |= {"total_s": real.total_s, "downtime_s": real.downtime_s}
            if real.guest_wrong:
                raise GuestError(f"{load.name}: {real.guest_wrong} pages of the guest are wrong")
        busy = (waited_s() - waited) / (time.monotonic() - started)
    return {"bandwidth": bandwidth, "redirty": ours, "qemu": theirs, "busy": busy}


def waited_s() -> float:
    """Return how long some task had to wait for a processor since the machine's start; 0 where the kernel does not
    report it. Source: Documentation/accounting/psi.rst.
    """
    try:
        return (
            int(re.findall(r"some .*total=(\d+)", Path("/proc/pressure/cpu").read_text())[0]) / 1e6
        )
    except (OSError, IndexError):
        return 0.0


def sent_bytes() -> int:
    """Return what this side of the link has sent, headers included."""
    text = Path("/proc/thread-self/net/dev").read_text()
    (line,) = (x for x in text.splitlines() if x.strip().startswith("v0:"))
    return int(line.partition(":")[2].split()[8])


def _mirrored(source: Machine, over: list[str], work: Path, bandwidth: float) -> Found:
    code, to = work / "code", Path("/dev/shm", f"redirty-{work.name}")
    listen = [REDIRTY, "receive", "--listen", f"{_ADDRESS}:7411", "--to", to, "--code-file", code]
    try:
        with subprocess.Popen(
            [*over, *map(str, listen)], stderr=subprocess.PIPE, text=True
        ) as receiver:
            assert receiver.stderr
            assert re.search("listening", receiver.stderr.readline())
            time.sleep(0.1)
            before = sent_bytes()
            words = ["mirror", "--vm", source.pid, "--qmp", source.control, "--code-file", code]
            words += ["--to", f"{_ADDRESS}:7411", "--bandwidth", f"{bandwidth / 1024:.0f}KiB"]
            words += ["--downtime", f"{DOWNTIME_S * 1e3:.0f}ms", "--json"]
            done = subprocess.run(
                [REDIRTY, *map(str, words)], capture_output=True, text=True, check=False
            )
            sent = sent_bytes() - before
            if done.returncode:
                receiver.terminate()
                return {"bytes": sent, "why": done.stderr[-400:]}
            receiver.wait(60)
    finally:
        subprocess.run(["rm", "-rf", to], check=True)
    answer = json.loads(done.stdout)
    return {
        "bytes": sent,
        "passes": len(answer["passes"]),
        **{k: answer[k] for k in ("total_s", "downtime_s", "stop_s", "boundary_s", "copy_s")},
        "mirror_passes": answer["passes"],
    }
