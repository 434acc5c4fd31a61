"""redirty top: the live screen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from redirty.collector.cli.arguments.bandwidth import add_bandwidth
from redirty.collector.cli.arguments.target import add_target, targets_named
from redirty.collector.errors import UsageError

if TYPE_CHECKING:
    from redirty.tui.options import TopChoices

_EPILOG = """\
Without a target: all processes by their write faults, counted without arming anything; enter traces one.
With one: its rounds as they end. Keys are told by ?, on every screen.

The target's first write to a page in each round costs a fault. When that, and arming, takes more than
--max-overhead of its CPU time, rounds are made longer.

examples:
  sudo redirty top                                 which processes write?
  sudo redirty top -p 1234 --bandwidth 10Gbit      one of them, and would mirroring it converge?
  redirty top --replay rec                         a recording, as it went; needs no root
  sudo redirty top --serve                         in a browser on this machine
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = "redirty top [TARGET] [interval] | redirty top --replay DIR"
    parser.epilog = _EPILOG
    add_target(parser)
    parser.add_argument(
        "interval", nargs="?", default=None, help="length of a round: 1, 100ms (default: 1s)"
    )
    parser.add_argument("--replay", metavar="DIR", help="a recording instead of a target")
    parser.add_argument("-o", "--output", metavar="DIR", help="also record into a new directory")
    parser.add_argument(
        "--max-overhead",
        metavar="PERCENT",
        help="of the target's CPU time that tracing may cost (default: 2%%)",
    )
    add_bandwidth(parser, "of the link to compare with (default: 10Gbit); one of")
    parser.add_argument(
        "--downtime", metavar="TIME", help="the target may stand still so long (default: 300ms)"
    )
    parser.add_argument(
        "--policy",
        default="redirty",
        metavar="P",
        help="redirty, qemu, criu:N, passes:N or xen (default: redirty)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="keys and theme, TOML (default: ~/.config/redirty/top.toml)",
    )
    parser.add_argument(
        "--serve",
        metavar="PORT",
        nargs="?",
        const=0,
        type=int,
        help="for a browser on this machine: prints the address",
    )


def run(options: argparse.Namespace) -> int:
    """Shows it."""
    live = targets_named(options) > 0
    if options.replay is not None:
        for given, name in (
            (live, "a target"),
            (options.output, "-o"),
            (options.max_overhead, "--max-overhead"),
            (options.interval, "an interval"),
        ):
            if given:
                raise UsageError(f"--replay shows a recording as it is: leave out {name}")
    elif not live and options.output is not None:
        raise UsageError("-o records a target: name one (-p, --tree, --cgroup or -- COMMAND)")
    from redirty.tui import launch as tui

    def checked() -> TopChoices:
        from redirty.collector.cli.top_options import checked

        return checked(options)

    return tui.run(options, checked)
