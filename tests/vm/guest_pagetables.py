"""Runs in a test VM with NUMA nodes: `redirty pagetables` on programs of all kinds, as JSON.

Usage: guest_pagetables.py PART[:ARGUMENT...] ..., where PART is one of the functions below. The answer to each
is under its words, an error instead of one as "error".
"""

from __future__ import annotations

import contextlib
import functools
import io
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

from redirty.collector.cli import main
from redirty.collector.pagetables import placement
from redirty.tui.readers import page_table_watch

from tests.support import relocation_loop
from tests.support.mapped_program import PAGE, Mapped, wrong_pages
from tests.support.page_table_entries import changed_by_a_move
from tests.support.target_state import Condition, assert_released, debugged
from tests.support.waiting import wait_until
from tests.vm.mover import (
    BARE,
    FAR,
    ON_NODE_0,
    Mover,
    changes,
    forked,
    killed,
    layout,
    no_balancing,
    rows,
    the_walker,
    there_and_back,
)
from tests.workloads.driver import Checksum

EXT4 = Path("/tmp/ext4")
_MOUNT = f"mount -o loop {EXT4}.image {EXT4}"
_MAKE_EXT4 = f"""
set -e
truncate -s 64M {EXT4}.image
/usr/sbin/mkfs.ext4 -q {EXT4}.image
/usr/sbin/modprobe -a loop ext4
mkdir {EXT4}
{_MOUNT}
"""


def run(*words: object) -> tuple[int, str, str]:
    """Run `redirty pagetables` in this process, as importing it takes long here; return exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(["pagetables", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


def mapping(kind: str, mib: str, times: str) -> dict[str, Any]:
    """Move one large mapping of a kind: private, shared, file."""
    path = "/dev/shm/mapped"
    with no_balancing(), Mapped(kind, int(mib), path, wrapper=ON_NODE_0) as target:
        maps = layout(target.pid)
        found: dict[str, Any] = {}
        found["wrong_entries"], found["bits"] = changed_by_a_move(
            the_walker(), target, lambda: found.update(there_and_back(target.pid, int(times)))
        )
        found["changes"] = changes(maps, target.pid)
        found["wrong"] = target.wrong()
        found["wrong_after_write"] = target.write(7)
    return found


def program() -> dict[str, Any]:
    """Run the command itself, as users call it."""
    with Mapped("private", 32, wrapper=ON_NODE_0) as target:
        sampled = json.loads(run("-p", target.pid, "--sample", "200ms", "--json")[1])
        would = run("-p", target.pid, "--to-node", FAR)
        moved = run("-p", target.pid, "--to-node", FAR, "--yes", "--json", "--max-pause", "200ms")
        wrong = target.wrong()
    return {
        "sampled": sampled,
        "would": would,
        "moved": json.loads(moved[1]) if moved[0] == 0 else moved,
        "wrong": wrong,
    }


def writers(times: str) -> dict[str, Any]:
    """Move tables while threads write, with checksums."""
    with Checksum(threads=4, mib=32, wrapper=ON_NODE_0) as target:
        maps = layout(target.pid)
        found = there_and_back(target.pid, int(times))
        found["changes"] = changes(maps, target.pid)
        result = target.stop()
    found |= {"errors": result.errors, "loops": result.loops, "checks": result.checks}
    return found


def redis(times: str) -> dict[str, Any]:
    """Move tables of redis under redis-benchmark."""
    from tests.support.servers import redis as started

    with started() as server:
        server.ask("set", "kept", "as it was")
        load = server.load(keys=8_000)
        try:
            server.server.wait_ready(lambda: int(server.ask("dbsize")) > 2_000)
            found = there_and_back(server.pid, int(times))
            found["alive"] = load.alive
        finally:
            load.close()
        found["output"] = load.text()[-2000:]
        found["pong"] = server.ask("ping")
        found["kept_value"] = server.ask("get", "kept")
        found["errors"] = server.ask("info", "errorstats").splitlines()[1:]
    return found


def kills(count: str) -> dict[str, Any]:
    """Kill a mover by SIGKILL at random moments: each time the target is unchanged and continues."""
    seed = int(os.environ.get("REDIRTY_SEED", time.time_ns()))
    with Checksum(threads=3, mib=16) as target:
        before, maps = Condition.of(target.pid), layout(target.pid)
        places = []

        def check() -> None:
            assert_released(target, before)
            places.append(not changes(maps, target.pid))

        held, trouble = killed(Mover(target.pid), int(count), random.Random(seed), check)
        result = target.stop()
    return {
        "seed": seed,
        "held": held,
        "trouble": trouble,
        "in_place": sum(places),
        "errors": result.errors,
        "loops": result.loops,
    }


def written_back() -> dict[str, Any]:
    """Write to a mapped file of ext4 just before a move; report whether the file has it afterwards, on the disk."""
    subprocess.run(["sh", "-c", _MAKE_EXT4], check=True)
    path = EXT4 / "mapped"
    with Mapped("file", 16, str(path), wrapper=ON_NODE_0) as target:
        target.sync()  # its pages are clean now, and write-protected
        target.write(99)
        moved = Mover(target.pid).to(FAR)
    subprocess.run(
        ["sh", "-c", f"umount {EXT4} && {_MOUNT}"], check=True
    )  # nothing of it is cached
    memory = path.read_bytes()
    return {"moved": moved.moved, "wrong": wrong_pages(memory, 99), "pages": len(memory) // PAGE}


def watched() -> dict[str, Any]:
    """Report what a live screen shows while tables move."""
    page_table_watch._CPU_SHARE = 0.5  # emulated, a hundredth of a processor is a walk a minute
    with Mapped("private", 32, wrapper=ON_NODE_0) as target:
        watch = page_table_watch.PageTableWatch(lambda: [target.pid])
        watch.start()
        texts = []

        def on_node(node: int) -> bool:
            target.use(0)  # which makes it run
            now = watch.latest
            if now is None or not now.ran_s:
                return False
            if now.by_node.get(node, 0) <= 0.8 * sum(now.by_node.values()):
                return False
            texts.append(now.text())
            return True

        for node in (0, FAR):
            Mover(target.pid).to(node)
            wait_until(functools.partial(on_node, node), f"tables on node {node}")
        watch.close()
    return {"output": texts}


def recorded(probe: str) -> dict[str, Any]:
    """Record rounds in which tables move; report whether each page that was written is dirty, in time."""
    directory = Path("/tmp/recorded")
    with Mapped("private", 32, wrapper=ON_NODE_0) as target:
        words = ["record", "-p", str(target.pid), "500ms", "--arm", "soft-dirty", "--probe", probe]
        with forked([*words, "-o", str(directory)], directory.with_suffix(".output")) as recorder:
            written = directory / "rounds.csv"

            def rounds_go_by(more: int) -> None:
                count = written.read_text().count("\n") if written.exists() else 0
                wait_until(lambda: written.read_text().count("\n") >= count + more, "rounds")

            wait_until(written.exists, "the recording")
            rounds_go_by(2)
            mover = Mover(target.pid)
            target.write(3)
            moved = [mover.to(FAR)]
            rounds_go_by(2)
            moved.append(mover.to(0))  # in a round in which nothing is written
            last = time.time()
            target.write(4)
            rounds_go_by(2)
            os.kill(recorder, signal.SIGINT)
    rounds, pages = (rows(directory / f"{name}.csv") for name in ("rounds", "pages"))
    meta = json.loads((directory / "meta.json").read_text())
    last_s = last - datetime.fromisoformat(meta["started"]).timestamp()
    ends = {int(r["round"]): float(r["start_s"]) + float(r["duration_s"]) for r in rounds}
    late = min(number for number, end_s in ends.items() if end_s >= last_s)
    inside = range(target.address, target.address + (32 << 20))
    found = sum(int(p["address"], 16) in inside and int(p["last_round"]) >= late for p in pages)
    return {
        "output": directory.with_suffix(".output").read_text(),
        "moved": [m.moved for m in moved],
        "kept": dict(moved[0].kept),
        "lost_writes": (32 << 8) - found,
        "missed": [int(r["missed_pages"]) for r in rounds],
        "dirty": [int(r["dirty_pages"]) for r in rounds],
        "moved_pages": meta["moved_pages"],
    }


def torture(seconds: str) -> dict[str, Any]:
    """Run the torture test while page tables move: a mirror kept by the round protocol must end equal."""
    from tests.torture.run import Plan
    from tests.torture.run import torture as tortured

    seed = int(os.environ.get("REDIRTY_SEED", time.time_ns() % (1 << 30)))
    tally = tortured(Plan(float(seconds), seed, arm="soft-dirty", moving=True))
    return {
        "output": f"seed {seed}: {tally}",
        "moved": tally.moved,
        "laps": tally.laps,
        "late": tally.late,
        "losses": [str(loss) for loss in tally.losses],
    }


def refusals() -> dict[str, Any]:
    """Report what cannot be done, one line each."""
    with Mapped("private", 4) as target:
        found = {
            "no_node": run("-p", target.pid, "--to-node", 7),
            "bare_node": run("-p", target.pid, "--to-node", BARE),
            "yes_alone": run("-p", target.pid, "--yes"),
        }
        with debugged(target.pid):
            found["debugged"] = run("-p", target.pid, "--to-node", FAR, "--yes")
        wrong = target.wrong()
    return {**found, "wrong": wrong}


def run_parts() -> None:
    """Run each requested part, whatever happens to the others."""
    found: dict[str, Any] = {}
    for module in (
        placement,
        page_table_watch,
        relocation_loop,
    ):  # where the one that is loaded suffices
        module.Walker = the_walker  # type: ignore[attr-defined]
    # clock ticks of 10 ms since booting, as proc(5) has them
    started_s = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100
    imports_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    print(f"imports: {imports_s:.0f} s", file=sys.stderr, flush=True)
    for words in sys.argv[1:]:
        name, *arguments = words.split(":")
        started = time.monotonic()
        try:
            found[words] = PARTS[name](*arguments)
        except Exception:
            found[words] = {"error": traceback.format_exc()}
        print(f"{words}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    json.dump(found, sys.stdout)


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part
    for part in (
        mapping,
        program,
        writers,
        redis,
        kills,
        written_back,
        watched,
        recorded,
        torture,
        refusals,
    )
}

if __name__ == "__main__":
    run_parts()
