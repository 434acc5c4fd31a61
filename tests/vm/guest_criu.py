"""Runs in the test VM: a mirror as a parent of CRIU's dump, restored, as JSON.

Usage: guest_criu.py MIB HOT_PAGES
The program counts in memory and checks all of it again and again. It is mirrored, the mirror exported, CRIU
dumps it with that as the parent, and restores it. Then once more from a parent in which a byte of memory
that was not written is wrong: if that goes unnoticed, the parent was not used, or the program did not check.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.migration.stats import parse
from tests.support.redirty_cli import ProgramError, run_redirty
from tests.support.waiting import wait_until

MIB, HOT = int(sys.argv[1]), int(sys.argv[2])
WORK = Path("/tmp/criu")
PROGRESS = WORK / "progress"
PARENT, DUMP = WORK / "images/parent", WORK / "images/dump"
BUILD = Path(__file__).resolve().parents[1] / "workloads/build"
_CHECKS = 3
_IN_PARENT = 1  # PE_PARENT of images/pagemap.proto


def progress() -> tuple[int, int, int]:
    """Return how far the program has counted, how often it checked all memory, and how often that was wrong."""
    count, checks, wrong = map(int, PROGRESS.read_text().split())
    return count, checks, wrong


def start() -> int:
    """Start it, without a terminal or a parent that it could lose."""
    program = shutil.copy(BUILD / "counting", WORK / "counting")
    with subprocess.Popen(
        ["setsid", "--fork", program, str(MIB), str(HOT), PROGRESS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    ):
        pass
    wait_until(lambda: PROGRESS.exists() and PROGRESS.read_text(), "counting")
    (pid,) = (int(p.name) for p in Path("/proc").iterdir()
              if p.name.isdigit() and (p / "comm").read_text() == "counting\n")  # fmt: skip
    return pid


def criu(*words: object, images: Path) -> None:
    """Run CRIU.

    Raises: ProgramError with the end of its log.
    """
    argv = ["criu", *map(str, words), "--images-dir", str(images), "-v4", "-o", "log"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        log = images / "log"
        output = log.read_text(errors="replace")[-2500:] if log.exists() else ""
        raise ProgramError(f"criu {words[0]} ended with {done.returncode}: {done.stderr}{output}")


def crit(path: Path) -> list[dict[str, Any]]:
    """Return the entries of an image, as CRIU's own tool decodes them."""
    done = subprocess.run(["crit", "show", path], capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["entries"]
    return found


def pages_of(pid: int, images: Path) -> dict[str, int]:
    """Return how many pages a pagemap has itself, and how many it leaves to its parent."""
    found = {"own": 0, "parent": 0}
    for entry in crit(images / f"pagemap-{pid}.img")[1:]:
        flags = entry.get("flags", entry.get("in_parent", 0))
        in_parent = (
            "PE_PARENT" in flags if isinstance(flags, str) else bool(int(flags) & _IN_PARENT)
        )
        found["parent" if in_parent else "own"] += entry["nr_pages"]
    return found


def continues() -> dict[str, int]:
    """Return what it counts after it was restored: until it has checked all memory a few times."""
    count, checks, _ = progress()
    wait_until(lambda: progress()[1] >= checks + _CHECKS, "counting again")
    now = progress()
    return {"before": count, "after": now[0], "wrong": now[2]}


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def corrupt(pid: int, address: int) -> None:
    """Change a byte of a page in the parent."""
    at = 0
    head, *entries = crit(PARENT / f"pagemap-{pid}.img")
    for entry in entries:
        start = int(str(entry["vaddr"]), 0)
        if start <= address < start + entry["nr_pages"] * 4096:
            with (PARENT / f"pages-{head['pages_id']}.img").open("r+b") as file:
                file.seek(at + address - start)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))
            return
        at += entry["nr_pages"] * 4096
    raise ProgramError(f"the parent has no page for {address:#x}")


def last_of_area(pid: int) -> int:
    """Return an address in the program's area that it never writes after its start."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last = (int(x, 16) for x in line.split()[0].split("-"))
        if last - first == MIB << 20 and " rw-p " in line:
            return last - 4096 - 3
    raise ProgramError("its area is not to be found")


def main() -> int:
    """Run both cases and print the result."""
    PARENT.mkdir(parents=True)
    PARENT.rmdir()
    DUMP.mkdir()
    subprocess.run(
        ["criu", "check", "--feature", "mem_dirty_track"], capture_output=True, check=True
    )
    pid = start()
    address = last_of_area(pid)
    mirror = WORK / "mirror"
    # CRIU learns from the soft-dirty bits what was written since: the mirror has to be armed by them.
    how = ["--arm", "soft-dirty", "--passes", "3", "--json"]
    done = run_redirty("mirror", "-p", pid, "--to", mirror, *how)
    if done.code:
        raise ProgramError(f"redirty mirror ended with {done.code}: {done.err}")
    exported = run_redirty("export-criu", mirror, "-o", PARENT)
    if exported.code:
        raise ProgramError(f"redirty export-criu ended with {exported.code}: {exported.err}")
    time.sleep(1)
    criu("dump", "--tree", pid, "--track-mem", "--prev-images-dir", "../parent", images=DUMP)
    found: dict[str, Any] = {
        "mirror": json.loads(done.out),
        "parent": pages_of(pid, PARENT),
        "dump": pages_of(pid, DUMP),
        "stats": asdict(parse((DUMP / "stats-dump").read_bytes())),
        "at_dump": progress(),
    }
    criu("restore", "--restore-detached", images=DUMP)
    found["restored"] = continues()
    end(pid)
    corrupt(pid, address)
    criu("restore", "--restore-detached", images=DUMP)
    found["spoiled"] = continues()
    end(pid)
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
