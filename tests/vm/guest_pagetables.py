"""Runs in a test VM with two NUMA nodes: `redirty pagetables` on programs of all kinds, as JSON.

Usage: guest_pagetables.py PART [ARGUMENTS], where PART is one of the functions below.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redirty.collector.host import nodes as host_nodes
from redirty.collector.host.smaps import Detailed, detailed
from redirty.collector.movable import HUGE
from redirty.collector.relocate import Moved, leaves_by_node, relocate
from redirty.collector.tables import Walker

from tests.host.mapped import Mapped
from tests.workloads.driver import Checksum

REDIRTY = Path(sys.executable).with_name("redirty")
MAX_PAUSE_S = 0.5  # emulated: ten times and more what it is otherwise
ON_NODE_0 = ("taskset", "-c", "0")


def run(*words: object, timeout_s: float = 300) -> tuple[int, str, str]:
    """redirty: exit code, stdout, stderr."""
    done = subprocess.run(
        [REDIRTY, "pagetables", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def layout(pid: int) -> list[Detailed]:
    """The mappings but for what grows by itself, and without the mark that mremap leaves (sd)."""
    found = [m for m in detailed(pid) if m.path != "[heap]"]
    return [m._replace(flags=m.flags - {"sd"}) for m in found]


class Mover:
    """Moves tables in this process, as the program does it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.nodes = host_nodes.look()
        self.walker = Walker(self.nodes.highest)

    def by_node(self) -> dict[int, int]:
        """Tables of the lowest level by node."""
        return leaves_by_node(self.walker.walk(self.pid), self.nodes)

    def to(self, node: int) -> Moved:
        """Moves them there."""
        return relocate(self.pid, self.walker, self.nodes, node, max_pause_s=MAX_PAUSE_S)


def there_and_back(pid: int, times: int) -> dict[str, Any]:
    """To node 1 and back, again and again: what stayed, what it took."""
    mover = Mover(pid)
    left: list[int] = []
    kept: list[int] = []
    longest, stopped, moved = 0.0, 0.0, 0
    reasons = Counter[str]()
    before = mover.by_node()
    for turn in range(2 * times):
        node = 1 - turn % 2
        result = mover.to(node)
        left.append(sum(count for n, count in result.after.items() if n != node))
        longest, stopped = max(longest, result.longest_s), stopped + result.stopped_s
        moved += result.moved
        kept.append(sum(result.kept.values()) - result.kept[HUGE])
        reasons |= result.kept
    return {
        "before": before,
        "after": mover.by_node(),
        "left": left,
        "kept": kept,
        "reasons": dict(reasons),
        "moved": moved,
        "longest_s": longest,
        "stopped_s": stopped,
    }


def mapping(kind: str, mib: str, times: str) -> dict[str, Any]:
    """One large mapping of a kind: private, shared, file."""
    path = "/dev/shm/mapped"
    with Mapped(kind, int(mib), path, wrapper=ON_NODE_0) as target:
        maps = layout(target.pid)
        found = there_and_back(target.pid, int(times))
        found["same_maps"] = layout(target.pid) == maps
        found["wrong"] = target.wrong()
        found["wrong_after_write"] = target.write(7)
    return found


def program() -> dict[str, Any]:
    """The command itself, as people call it."""
    with Mapped("private", 64, wrapper=ON_NODE_0) as target:
        looked = json.loads(run("-p", target.pid, "--sample", "200ms", "--json")[1])
        would = run("-p", target.pid, "--to-node", 1)
        moved = run("-p", target.pid, "--to-node", 1, "--yes", "--json", "--max-pause", "200ms")
        wrong = target.wrong()
    return {
        "looked": looked,
        "would": would,
        "moved": json.loads(moved[1]) if moved[0] == 0 else moved,
        "wrong": wrong,
    }


def writers(times: str) -> dict[str, Any]:
    """Threads that write, with checksums, all the while."""
    with Checksum(threads=4, mib=64, wrapper=ON_NODE_0) as target:
        maps = layout(target.pid)
        found = there_and_back(target.pid, int(times))
        found["same_maps"] = layout(target.pid) == maps
        result = target.stop()
    found |= {"errors": result.errors, "loops": result.loops, "checks": result.checks}
    return found


def redis(times: str) -> dict[str, Any]:
    """redis under redis-benchmark."""
    from tests.host.programs import redis as started

    with started() as server:
        server.ask("set", "kept", "as it was")
        load = server.load(seconds_at_most=600, keys=20_000)
        try:
            server.server.wait_ready(lambda: int(server.ask("dbsize")) > 5_000)
            found = there_and_back(server.pid, int(times))
            found["alive"] = load.alive
        finally:
            load.close()
        found["said"] = load.said()[-2000:]
        found["pong"] = server.ask("ping")
        found["kept_value"] = server.ask("get", "kept")
        found["errors"] = server.ask("info", "errorstats").splitlines()[1:]
    return found


def kills(count: str) -> dict[str, Any]:
    """kill -9 of a mover at random moments, while it moves a program's tables to and fro."""
    seed = int(os.environ.get("REDIRTY_SEED", time.time_ns()))
    rng = random.Random(seed)
    held = 0
    with Checksum(threads=3, mib=16) as target:
        for _ in range(int(count)):
            words = [sys.executable, __file__, "forever", str(target.pid)]
            mover = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            assert mover.stdout is not None
            mover.stdout.readline()  # it begins
            time.sleep(rng.uniform(0, 0.5))
            held += "TracerPid:\t0" not in Path(f"/proc/{target.pid}/status").read_text()
            mover.kill()
            mover.wait()
        deadline = time.monotonic() + 30
        while "TracerPid:\t0" not in Path(f"/proc/{target.pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        strange = [m.perms for m in detailed(target.pid) if m.perms == "rwxp"]
        result = target.stop()
    return {
        "seed": seed,
        "kills": int(count),
        "held": held,
        "errors": result.errors,
        "loops": result.loops,
        "strange": strange,
    }


def forever(pid: str) -> dict[str, Any]:
    """To and fro until it is killed."""
    mover = Mover(int(pid))
    print("begins", flush=True)
    turn = 0
    while True:
        mover.to(turn % 2)
        turn += 1


def speed(mib: str, times: str) -> dict[str, Any]:
    """A GiB's pause, against move_pages(2) of the same memory between the same nodes."""
    import ctypes

    import numpy as np

    libc = ctypes.CDLL(None, use_errno=True)
    ratios: list[float] = []
    stopped: list[float] = []
    longest = 0.0
    with Mapped("private", int(mib), wrapper=ON_NODE_0) as target:
        mover = Mover(target.pid)
        pages = target.address + np.arange(int(mib) << 8, dtype=np.uint64) * np.uint64(4096)
        status = np.zeros(len(pages), np.int32)
        for turn in range(int(times)):
            node = 1 - turn % 2
            result = mover.to(node)
            nodes = np.full(len(pages), node, np.int32)
            begun = time.monotonic()
            arrays = (a.ctypes.data_as(ctypes.c_void_p) for a in (pages, nodes, status))
            moved = libc.syscall(279, target.pid, ctypes.c_ulong(len(pages)), *arrays, 2)
            took = time.monotonic() - begun
            assert moved == 0, ctypes.get_errno()
            assert (status == node).all()
            stopped.append(result.stopped_s / result.moved * 512)
            ratios.append(result.stopped_s / result.moved * (int(mib) / 2) / took)
            longest = max(longest, result.longest_s)
        wrong = target.wrong()
    return {"s_per_gib": stopped, "of_move_pages": ratios, "longest_s": longest, "wrong": wrong}


def written_back() -> dict[str, Any]:
    """Writes to a mapped file just before a move: in the file afterwards? Run on ext4."""
    path = Path("/tmp/ext4/mapped")
    subprocess.run(["sync"], check=True)
    with Mapped("file", 64, str(path), wrapper=ON_NODE_0) as target:
        os.sync()  # its pages are clean now, and write-protected
        target.write(99)
        moved = Mover(target.pid).to(1)
        os.kill(target.pid, signal.SIGKILL)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    import numpy as np

    from tests.host.mapped import SHOWN, WORDS, contents

    words = np.fromfile(path, np.uint64).reshape(-1, WORDS)
    wrong = int((words[:, :SHOWN] != contents(len(words), 99)).any(axis=1).sum())
    return {"moved": moved.moved, "wrong": wrong, "pages": len(words)}


def recorded() -> dict[str, Any]:
    """A recording in whose rounds tables move: is each page that was written dirty in some round?"""
    import pandas as pd

    found = {}
    for arm in ("soft-dirty", "uffd"):
        directory = Path(f"/tmp/recorded-{arm}")
        with Mapped("private", 32, wrapper=ON_NODE_0) as target:
            words = ["record", "-p", str(target.pid), "2s", "6", "--arm", arm, "-o", directory]
            recorder = subprocess.Popen([REDIRTY, *words], stderr=subprocess.PIPE, text=True)
            while not (directory / "meta.json").exists() and recorder.poll() is None:
                time.sleep(0.05)
            mover = Mover(target.pid)
            target.write(3)
            moved = mover.to(1)
            time.sleep(2.5)
            again = mover.to(0)  # in a round in which nothing is written
            target.write(4)
            _, said = recorder.communicate()
        rounds = pd.read_csv(directory / "rounds.csv")
        pages = pd.read_csv(directory / "pages.csv")
        inside = (
            pages["address"]
            .map(lambda a: int(a, 16))
            .between(target.address, target.address + (32 << 20) - 1)
        )
        meta = json.loads((directory / "meta.json").read_text())
        found[arm] = {
            "said": said,
            "moved": [moved.moved, again.moved],
            "kept": dict(moved.kept),
            "lost_writes": (32 << 8) - int((inside & (pages["rounds_dirty"] > 0)).sum()),
            "missed": rounds["missed_pages"].tolist(),
            "dirty": rounds["dirty_pages"].tolist(),
            "moved_pages": meta["moved_pages"],
        }
    return found


def refusals() -> dict[str, Any]:
    """What can't be done, one line each."""
    with Mapped("private", 4) as target:
        found = {
            "no_node": run("-p", target.pid, "--to-node", 7),
            "bare_node": run("-p", target.pid, "--to-node", 1),
            "yes_alone": run("-p", target.pid, "--yes"),
        }
        debugger = subprocess.Popen(
            ["gdb", "-q", "-p", str(target.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text():
            time.sleep(0.05)
        found["debugged"] = run("-p", target.pid, "--to-node", 1, "--yes")
        debugger.kill()
        debugger.wait()
        wrong = target.wrong()
    return {**found, "wrong": wrong}


if __name__ == "__main__":
    functions = (
        mapping,
        program,
        writers,
        redis,
        kills,
        speed,
        forever,
        written_back,
        recorded,
        refusals,
    )
    parts: dict[str, Callable[..., dict[str, Any]]] = {f.__name__: f for f in functions}
    json.dump(parts[sys.argv[1]](*sys.argv[2:]), sys.stdout)
