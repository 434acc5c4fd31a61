"""Runs in the test VM: `redirty record` on a program that never stops writing, as JSON.

Usage: guest_record.py DIRECTORY. The directory must be on a real file system.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.redirty_cli import REDIRTY
from tests.workloads.driver import Phases

RECORDING = Path("/tmp/recording")
ROUNDS = 3


def main() -> int:
    """Record, and print what was recorded."""
    areas = {"shared_file": ("file_shared", 1), "anon": ("anon_private", 1)}
    over = threading.Event()
    with Phases(areas, directory=sys.argv[1]) as phases:

        def write() -> None:
            while not over.is_set():
                for name in areas:
                    phases.write(name, "all", threads=2)
                # Causes some TLB flushes by the target itself.
                phases.mprotect("anon", False)
                phases.mprotect("anon", True)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            done = subprocess.run(
                [REDIRTY, "record", "-p", str(phases.pid), "1s", str(ROUNDS), "-o", RECORDING],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            over.set()
            writer.join()
    found: dict[str, object] = {"exit": done.returncode, "out": done.stdout, "err": done.stderr}
    if RECORDING.is_dir():
        found["meta"] = json.loads((RECORDING / "meta.json").read_text())
        for name in ("rounds", "mappings", "tlb", "curve"):
            with (RECORDING / f"{name}.csv").open(newline="") as file:
                found[name] = list(csv.DictReader(file))
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
