"""A mirror next to its peers with the same workload in the same run: CRIU's pre-dumps to its page server, in an
emulated machine, and QEMU's live migration, over a link of a given rate.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tests.bench import peers_qemu
from tests.bench.figures import interval
from tests.bench.migration.guests import GuestError
from tests.bench.migration.qmp import QmpError
from tests.bench.results import Row, not_run
from tests.vm import initramfs, kernels, machine
from tests.workloads.driver import build

_CRIU_KERNEL, _QEMU_KERNEL = "6.12", "6.1"
_PYTHON = machine.PROJECT / ".venv/bin/python"
_TIMEOUT_S = 3000.0
_PRE_DUMPS = 3
_MIB = 1 << 20
_TROUBLE = (
    machine.VmError,
    kernels.KernelError,
    initramfs.InitramfsError,
    GuestError,
    QmpError,
    OSError,
    ValueError,
)
Found = dict[str, Any]


def rows(quick: bool) -> Iterator[Row]:
    """Measure both, each where it can run."""
    yield from _compared("criu", lambda: _criu(quick))
    yield from _compared("qemu", lambda: _qemu(quick))


def _criu(quick: bool) -> list[Found]:
    if shutil.which("criu", path="/usr/sbin:/usr/bin") is None:
        raise OSError("criu is not installed (Debian package criu)")
    build()  # here: the guest sees the programs, and a compiler would take too long in it
    names = ["uniform"] if quick else ["uniform", "hot_cold", "cyclic"]
    words = ["1" if quick else "2", str(_PRE_DUMPS), ",".join(names)]
    with machine.Vm(_CRIU_KERNEL) as vm:
        done = vm.run(
            [str(_PYTHON), "-m", "tests.bench.guest_peers", *words],
            env={"PYTHONPATH": str(machine.PROJECT)},
            timeout_s=_TIMEOUT_S,
        )
    if done.exit_code:
        raise machine.VmError(f"the guest failed: {done.stderr.decode()[-1500:]}")
    found: list[Found] = json.loads(done.stdout)
    return found


def _qemu(quick: bool) -> list[Found]:
    names = ["uniform"] if quick else ["uniform", "hot_cold", "cyclic"]
    factors = [2.0] if quick else [1.3, 2.5]
    return list(peers_qemu.measured(kernels.fetch(_QEMU_KERNEL), names, factors))


def _compared(peer: str, measure: Any) -> Iterator[Row]:
    name = {"criu": "CRIU's page server", "qemu": "QEMU's migration"}[peer]
    try:
        found = measure()
    except _TROUBLE as e:
        print(f"  {peer}: {e}", file=sys.stderr)
        yield not_run(f"mirror next to {name}", " ".join(str(e).split())[-300:])
        return
    both = []
    for one in found:
        print(_line(one, peer), file=sys.stderr)
        if "why" not in one["redirty"] and "why" not in one[peer]:
            both.append(one)
    ended = f"{len(both)} of {len(found)} ended in both"
    for what, goal in (("bytes", 1.0), ("downtime_s", 1.0), ("total_s", None), ("passes", None)):
        ratios = [one["redirty"][what] / one[peer][what] for one in both]
        if not ratios:
            yield not_run(f"mirror: {what} of {name}", ended)
            continue
        yield Row(
            f"mirror: {_WORDS[what]}, of {name}",
            _median(both, "redirty", what),
            _median(both, peer, what),
            interval(ratios),
            goal=goal,
            note=ended,
        )


_WORDS = {"bytes": "bytes", "downtime_s": "downtime", "total_s": "total time", "passes": "passes"}


def _median(found: Sequence[Found], who: str, what: str) -> str:
    value = interval([one[who][what] for one in found]).median
    if what == "bytes":
        return f"{value / _MIB:.1f} MiB"
    return f"{value:.0f}" if what == "passes" else f"{value:.2f} s"


def _line(one: Found, peer: str) -> str:
    """Format one measurement."""
    parts = []
    for who in ("redirty", peer):
        f = one[who]
        text = f"{who} {f['bytes'] / _MIB:.1f} MiB"
        if "why" in f:
            parts.append(f"{text}, then no more: {f['why']}")
        else:
            parts.append(
                f"{text}, {f['passes']} passes, {f['total_s']:.2f} s, down {f['downtime_s'] * 1e3:.0f} ms"
            )
    rate = f" at {one['bandwidth'] / _MIB:.1f} MiB/s" if "bandwidth" in one else ""
    if "busy" in one:
        parts.append(f"waited for a processor {one['busy']:.0%} of the time")
    return f"  {one['workload']}{rate}: " + "; ".join(parts)
