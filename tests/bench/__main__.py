"""make bench: prints one table of ratios and figures, each next to its floor. See README.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import traceback
from pathlib import Path

from tests.bench.results import Row, as_json, not_run, render

# name -> what it measures; a module each, with rows(quick)
GROUPS = {
    "writes": "a first write after an arm, and the same with other tools",
    "faults": "page faults of processes that are not the target",
    "scans": "arming and scanning",
    "rounds": "the collector's work in a round",
    "ring": "the ring of events",
    "predictions": "predicting from a recording, and live",
    "startup": "waiting for redirty",
    "mirror": "mirroring a target",
    "downtime": "the downtime asked for, and the one that was had",
    "converge": "mirrors as they were predicted",
    "destinations": "mirrors that no rate limits, as they were predicted",
    "verdicts": "verdicts about servers, and mirrors of them; ten minutes of a live one",
    "peers": "mirroring, next to CRIU and QEMU",
    "servers": "redis under load",
    "top": "the live screen",
    "pagetables": "page tables moved",
    "nodes": "page tables moved between two nodes, in an emulated machine",
    "probes": "fentry and kprobe, in an emulated machine",
}
MODULES = {"probes": "vm_probes", "nodes": "vm_tables"}  # where the name is not the group's


def main() -> int:
    """Run the groups; return 1 when one of them could not run to its end, whatever the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run?")
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=GROUPS,
        help="one group (repeatable): " + ", ".join(GROUPS),
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("the benchmark traces processes, which needs root: sudo make bench", file=sys.stderr)
        return 1
    found: list[Row] = []
    failed = False
    for name in options.only or GROUPS:
        print(f"{name}: {GROUPS[name]} ...", file=sys.stderr, flush=True)
        module = importlib.import_module(f"tests.bench.{MODULES.get(name, name)}")
        try:
            found.extend(module.rows(options.quick))
        except Exception as e:
            # the rows of the other groups are worth having
            traceback.print_exc()
            found.append(not_run(name, f"{type(e).__name__}: {e}"))
            failed = True
    print(f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} processors")
    print(render(found), end="")
    if options.json:
        options.json.write_text(json.dumps(as_json(found), indent=2) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
