"""Runs in a test VM with two NUMA nodes: `redirty pagetables` on programs of all kinds, as JSON.

Usage: guest_pagetables.py PART[:ARGUMENT...] ..., where PART is one of the functions below; the answer to
each is under its words, an error instead of one as "error".
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.host.condition import Condition, assert_released
from tests.host.entries import changed_by_a_move
from tests.host.mapped import PAGE, Mapped, wrong_pages
from tests.vm.mover import ON_NODE_0, Mover, changes, killed, layout, there_and_back
from tests.workloads.driver import Checksum

REDIRTY = Path(sys.executable).with_name("redirty")
EXT4 = Path("/tmp/ext4")
_MAKE_EXT4 = f"""
set -e
truncate -s 256M {EXT4}.image
/usr/sbin/mkfs.ext4 -q {EXT4}.image
/usr/sbin/modprobe -a loop ext4
mkdir {EXT4}
mount -o loop {EXT4}.image {EXT4}
"""


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


def mapping(kind: str, mib: str, times: str) -> dict[str, Any]:
    """One large mapping of a kind: private, shared, file."""
    path = "/dev/shm/mapped"
    with Mapped(kind, int(mib), path, wrapper=ON_NODE_0) as target:
        maps = layout(target.pid)
        mover = Mover(target.pid)
        changed = changed_by_a_move(mover.walker, target, lambda: (mover.to(1), mover.to(0)))
        found = there_and_back(target.pid, int(times))
        found["changes"] = changes(maps, target.pid)
        found["wrong_entries"], found["bits"] = changed
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
        found["changes"] = changes(maps, target.pid)
        result = target.stop()
    found |= {"errors": result.errors, "loops": result.loops, "checks": result.checks}
    return found


def redis(times: str) -> dict[str, Any]:
    """redis under redis-benchmark."""
    from tests.host.programs import redis as started

    with started() as server:
        server.ask("set", "kept", "as it was")
        load = server.load(seconds_at_most=7200, keys=20_000)
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
    """kill -9 of a mover at random moments: each time all is as it was before, and goes on."""
    seed = int(os.environ.get("REDIRTY_SEED", time.time_ns()))
    with Checksum(threads=3, mib=16) as target:
        before, maps = Condition.of(target.pid), layout(target.pid)
        places = []

        def look() -> None:
            assert_released(target, before)
            places.append(not changes(maps, target.pid))

        held, trouble = killed(Mover(target.pid), int(count), random.Random(seed), look)
        result = target.stop()
    return {
        "seed": seed,
        "held": held,
        "trouble": trouble,
        "in_place": sum(places),
        "errors": result.errors,
        "loops": result.loops,
    }


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
    """Writes to a mapped file of ext4 just before a move: in the file afterwards?"""
    subprocess.run(["sh", "-c", _MAKE_EXT4], check=True)
    path = EXT4 / "mapped"
    with Mapped("file", 64, str(path), wrapper=ON_NODE_0) as target:
        os.sync()  # its pages are clean now, and write-protected
        target.write(99)
        moved = Mover(target.pid).to(1)
        os.kill(target.pid, signal.SIGKILL)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    memory = path.read_bytes()
    return {"moved": moved.moved, "wrong": wrong_pages(memory, 99), "pages": len(memory) // PAGE}


def recorded() -> dict[str, Any]:
    """Recordings in whose rounds tables move: is each page that was written dirty, in time?"""
    return {arm: _recorded(arm) for arm in ("soft-dirty", "uffd")}


def _recorded(arm: str) -> dict[str, Any]:
    import pandas as pd

    directory = Path(f"/tmp/recorded-{arm}")
    with Mapped("private", 32, wrapper=ON_NODE_0) as target:
        words = ["record", "-p", str(target.pid), "1s", "--arm", arm, "-o", str(directory)]
        recorder = subprocess.Popen([REDIRTY, *words], stderr=subprocess.PIPE, text=True)
        written = directory / "rounds.csv"
        while recorder.poll() is None and (
            not written.exists() or written.read_text().count("\n") < 3
        ):
            time.sleep(0.05)
        if recorder.poll() is not None:
            return {"refused": recorder.communicate()[1]}
        mover = Mover(target.pid)
        target.write(3)
        moved = [mover.to(1)]
        time.sleep(2.5)
        moved.append(mover.to(0))  # in a round in which nothing is written
        last = time.time()
        target.write(4)
        time.sleep(2.5)
        recorder.send_signal(signal.SIGINT)
        _, said = recorder.communicate()
    rounds, pages = (pd.read_csv(directory / f"{name}.csv") for name in ("rounds", "pages"))
    meta = json.loads((directory / "meta.json").read_text())
    addresses = pages["address"].map(lambda a: int(a, 16))
    mine = pages[addresses.between(target.address, target.address + (32 << 20) - 1)]
    last_s = last - datetime.fromisoformat(meta["started"]).timestamp()
    late = rounds["round"][rounds["start_s"] + rounds["duration_s"] >= last_s].min()
    return {
        "said": said,
        "moved": [m.moved for m in moved],
        "kept": dict(moved[0].kept),
        "lost_writes": (32 << 8) - int((mine["last_round"] >= late).sum()),
        "missed": rounds["missed_pages"].tolist(),
        "dirty": rounds["dirty_pages"].tolist(),
        "moved_pages": meta["moved_pages"],
    }


def torture(seconds: str) -> dict[str, Any]:
    """The torture test while page tables move: a mirror kept by the round protocol must end equal."""
    from tests.torture.run import Plan
    from tests.torture.run import torture as tortured

    seed = int(os.environ.get("REDIRTY_SEED", time.time_ns() % (1 << 30)))
    tally = tortured(Plan(float(seconds), seed, arm="soft-dirty", moving=True))
    return {
        "said": f"seed {seed}: {tally}",
        "moved": tally.moved,
        "laps": tally.laps,
        "late": tally.late,
        "losses": [str(loss) for loss in tally.losses],
    }


def refusals() -> dict[str, Any]:
    """What can't be done, one line each."""
    with Mapped("private", 4) as target:
        found = {
            "no_node": run("-p", target.pid, "--to-node", 7),
            "bare_node": run("-p", target.pid, "--to-node", 2),
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


def main() -> None:
    """Each part that is asked for, whatever becomes of the others."""
    found: dict[str, Any] = {}
    for words in sys.argv[1:]:
        name, *arguments = words.split(":")
        begun = time.monotonic()
        try:
            found[words] = PARTS[name](*arguments)
        except Exception:
            found[words] = {"error": traceback.format_exc()}
        print(f"{words}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    json.dump(found, sys.stdout)


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part
    for part in (
        mapping,
        program,
        writers,
        redis,
        kills,
        speed,
        written_back,
        recorded,
        torture,
        refusals,
    )
}

if __name__ == "__main__":
    main()
