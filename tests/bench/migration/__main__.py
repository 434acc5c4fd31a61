"""make bench-migration: predictions next to real migrations and pre-dumps. See ../README.md."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.migration import criu, run, table
from tests.bench.migration.move import POLICIES, QEMU
from tests.bench.migration.results import Load, Predicted, PreDump, Real, read, read_settings
from tests.bench.migration.verdicts import compare, summary
from tests.bench.migration.workloads import WORKLOADS, WorkloadMissingError
from tests.vm import initramfs, kernels, machine

CRIU = "criu"
# Failures of one workload, after which the others are still worth measuring.
TROUBLE = (
    *run.TROUBLE,
    WorkloadMissingError,
    kernels.KernelError,
    machine.VmError,
    initramfs.InitramfsError,
)
FACTORS = (0.6, 0.85, 0.97, 1.05, 1.2, 1.6, 2.5, 5.0)
OTHERS = (0.5, 0.85, 1.2, 2.5)  # for other policies than plain pre-copy
QUICK = (0.7, 2.0)
# Not a whole number of seconds: rounds would all start at the same moment of a workload that does
# something each second, and W(t) would be that moment's.
INTERVAL, QUICK_INTERVAL = "10.3s", "3.3s"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m tests.bench.migration",
        description=__doc__.splitlines()[0] if __doc__ else "",
    )
    found.add_argument("--only", metavar="NAME", action="append", choices=[*WORKLOADS, CRIU],
                       help="one workload, or criu (repeatable): " + ", ".join([*WORKLOADS, CRIU]))  # fmt: skip
    found.add_argument("--out", metavar="DIR", type=Path, help="a new folder for the results")
    found.add_argument("--from", metavar="DIR", type=Path, dest="old",
                       help="the tables of an earlier run, without running again")  # fmt: skip
    found.add_argument("--again", action="store_true",
                       help="with --from: predict anew from the recordings")  # fmt: skip
    found.add_argument("--quick", action="store_true", help="few and short: does it run?")
    found.add_argument("--times", metavar="X", type=float, nargs="+",
                       help="bandwidths in critical ones")  # fmt: skip
    found.add_argument("--policy", metavar="NAME", action="append", choices=[*POLICIES],
                       help="in addition to qemu (repeatable; default: all): " + ", ".join(POLICIES[1:]))  # fmt: skip
    found.add_argument("--downtime", metavar="S", type=float, default=0.3, help="default 0.3")
    found.add_argument("--patience", metavar="S", type=float,
                       help="after which a migration does not converge: default 120")  # fmt: skip
    found.add_argument("--last-bandwidth", metavar="BYTES", type=float, default=1e9,
                       help="per second, of the last pass: default 1e9, a unix socket's")  # fmt: skip
    found.add_argument(
        "--interval", metavar="TIME", help=f"of a recording's rounds: default {INTERVAL}"
    )
    found.add_argument("--rounds", type=int, help="of a recording: default 6")
    return found


def show(out: Path) -> None:
    """Print all tables of an output folder.

    Raises: OSError.
    """
    settings = read_settings(out)
    loads, predicted = read(out, Load), read(out, Predicted)
    rows = compare(loads, read(out, Real), predicted, settings.patience_s)
    print(f"{settings.qemu}; guests with Linux {settings.kernel}; redirty {settings.redirty}; "
          f"downtime limit {settings.downtime_s:g} s; recorded {settings.rounds} x {settings.interval}")  # fmt: skip
    if rows:
        print("\n" + table.workloads(loads, rows))
        print(table.migrations(rows))
        print(table.problems(predicted), end="")
        for policy in dict.fromkeys(row.real.policy for row in rows):
            own = [row for row in rows if row.real.policy == policy]
            print(f"{policy}: " + table.totals(summary(own), settings), end="")
    if dumps := read(out, PreDump):
        print("\n" + table.predumps(dumps))
        print(criu.totals(dumps), end="")


def main() -> int:
    """Run what is requested; return 1 when something could not run to its end, whatever the figures."""
    options = parser().parse_args()
    if options.old is not None:
        if options.again:
            run.predict_again(options.old)
            criu.predict_again(options.old)
        show(options.old)
        return 0
    if os.geteuid() != 0:
        print("it traces machines, which needs root: sudo make bench-migration", file=sys.stderr)
        return 1
    quick = options.quick
    kernel = kernels.fetch(run.KERNEL)
    settings = run.settings_of(
        kernel,
        options.downtime,
        options.patience or (30.0 if quick else 120.0),
        options.last_bandwidth,
        options.interval or (QUICK_INTERVAL if quick else INTERVAL),
        options.rounds or (3 if quick else 6),
    )
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    out = options.out or Path("bench-results") / f"migration-{stamp}"
    plan = run.Plan(
        out.absolute(),
        settings,
        kernel,
        options.times or (QUICK if quick else FACTORS),
        options.times or (QUICK if quick else OTHERS),
        [name for name in options.policy or POLICIES if name != QEMU],
    )
    run.prepare(plan)
    failed = False
    for name in options.only or [*WORKLOADS, CRIU]:
        try:
            if name == CRIU:
                criu.measure(plan.out, quick=quick)
            else:
                run.measure(plan, WORKLOADS[name]())
        except TROUBLE as e:
            print(f"{name}: not run to its end: {e}", file=sys.stderr)
            failed = True
    show(plan.out)
    print(f"\nraw results: {out}; the tables again: --from {out}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, kernels.KernelError) as error:
        print(f"bench-migration: {error}", file=sys.stderr)
        sys.exit(1)
