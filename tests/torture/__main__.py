"""Command line of the torture test: python -m tests.torture, as root."""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from redirty.collector.errors import RedirtyError

from tests.torture.run import Plan, Tally, torture

_PROGRESS_S = 10.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description="""\
Threads write at random into all kinds of mappings, which change, while children come and go; a mirror
is kept by the rules of the round protocol alone and compared after each lap. Exit code 1: a page was
lost.""",
        epilog="""in a virtual machine with another kernel:
  python3 tests/vm/runner.py --kernel 6.1 --timeout 1200 -- \\
    .venv/bin/python -m tests.torture --seconds 600 --arm soft-dirty --probe kprobe""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="duration; default 60")
    parser.add_argument("--seed", type=int, help="seed of an earlier run; default: a new one")
    parser.add_argument("--arm", default="auto", choices=("auto", "uffd", "soft-dirty"))
    parser.add_argument(
        "--probe", default="auto", choices=("auto", "fentry", "kprobe", "tracepoint")
    )
    parser.add_argument("--threads", type=int, default=6, help="threads that write; default 6")
    parser.add_argument("--mib", type=int, default=1, help="size of most areas; default 1")
    parser.add_argument(
        "--moving", action="store_true", help="relocate page tables meanwhile (soft-dirty)"
    )
    parser.add_argument(
        "--directory", type=Path, help="directory for its files; default: a temporary one"
    )
    return parser


class _Progress:
    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, tally: Tally) -> None:
        if time.monotonic() >= self._next:
            self._next += _PROGRESS_S
            print(tally, flush=True)


def main() -> int:
    """Run it and return the exit code."""
    options = _parser().parse_args()
    seed = random.SystemRandom().randrange(1, 1 << 30) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    plan = Plan(
        seconds=options.seconds,
        seed=seed,
        arm=options.arm,
        probe=options.probe,
        threads=options.threads,
        mib=options.mib,
        directory=options.directory,
        moving=options.moving,
    )
    try:
        tally = torture(plan, _Progress())
    except RedirtyError as e:
        print(e, file=sys.stderr)
        return 1
    for loss in tally.losses:
        print(f"lost (seed {seed}): {loss}")
    print(tally)
    return 1 if tally.losses or tally.late else 0


if __name__ == "__main__":
    sys.exit(main())
