"""redirty top: the live screen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.collector.cli.arguments.bandwidth import add_bandwidth
from redirty.collector.cli.arguments.question import add_question
from redirty.collector.cli.arguments.target import add_target, targets_named
from redirty.collector.errors import UsageError

if TYPE_CHECKING:
    from redirty.tui.options import TopChoices

_EPILOG = """\
Without a target, top lists all processes by their write faults, counted without arming anything; enter
traces one. With a target, it shows each round as it ends. Press ? on any screen for its keys.

Tracing costs the target one fault for the first write to a page in each round. When faults and arming
take more than --max-overhead of a core, or of its CPU time where that is more than a core, rounds are made
longer, up to 2 s.

examples:
  sudo redirty top                                 which processes write?
  sudo redirty top -p 1234 --bandwidth 10Gbit      one process, and would mirroring it converge?
  redirty top --replay rec                         replay a recording; needs no root
  sudo redirty top --serve                         in a browser on this machine
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty top [TARGET] [interval] | redirty top --replay DIR"
    parser.epilog = _EPILOG
    add_target(parser)
    parser.add_argument(
        "interval", nargs="?", default=None, help="length of a round: 1, 100ms (default: 1s)"
    )
    parser.add_argument("--replay", metavar="DIR", help="show a recording instead of a target")
    parser.add_argument("-o", "--output", metavar="DIR", help="also record into a new directory")
    parser.add_argument(
        "--max-overhead",
        metavar="PERCENT",
        help="share of a core, or of the target's CPU time if that is more, that tracing may cost it (default: 2%%)",
    )
    add_bandwidth(parser, "of the link to compare with (default: 10Gbit); one of")
    add_question(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="keys and theme, TOML (default: ~/.config/redirty/top.toml)",
    )
    parser.add_argument(
        "--once", action="store_true", help="print one round, or all processes, as text, and end"
    )
    parser.add_argument(
        "--json-lines",
        action="store_true",
        help="print a line of JSON on stdout for each round, without a screen; with --once one",
    )
    parser.add_argument(
        "--serve",
        metavar="PORT",
        nargs="?",
        const=0,
        type=port,
        help="serve it to a browser on this machine, and print the address",
    )


def port(text: str) -> int:
    """Parse a port as tui.web does when it removes the option from a visit's command line: digits only."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)  # argparse says which option it is
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Show the screens, here or in a browser; return the exit code."""
    _check_combinations(options)

    def choose() -> TopChoices:
        from redirty.collector.cli.top_options import choices_of

        return choices_of(options)

    if options.serve is not None:
        choose()  # report wrong usage here, not in each visit
        from redirty.tui import web

        return web.serve(options.serve)
    if options.once or options.json_lines:
        from redirty.tui import lines

        return lines.run(choose(), once=options.once, as_json=options.json_lines)
    from redirty.tui import launch

    return launch.run(choose, None if options.config is None else Path(options.config))


def _check_combinations(options: argparse.Namespace) -> None:
    """Raise UsageError for options that exclude each other."""
    live = targets_named(options) > 0
    plain = "--once" if options.once else "--json-lines" if options.json_lines else ""
    if plain and options.serve is not None:
        raise UsageError(f"{plain} prints what --serve shows in a browser: leave out one of them")
    if options.replay is not None:
        if plain:
            raise UsageError(
                f"{plain} is for what runs now; of a recording use redirty report --json"
            )
        for given, name in (
            (live, "a target"),
            (options.output, "-o"),
            (options.max_overhead, "--max-overhead"),
            (options.interval, "an interval"),
        ):
            if given:
                raise UsageError(f"--replay shows a recording unchanged: leave out {name}")
    elif not live and options.output is not None:
        raise UsageError("-o records a target: name one (-p, --tree, --cgroup or -- COMMAND)")
    if options.serve is not None and options.command:
        raise UsageError(
            "--serve starts a new redirty top for each visit: start the command yourself and name "
            "it with -p"
        )
    if options.serve is not None and options.output is not None:
        raise UsageError("--serve starts a new redirty top for each visit: leave out -o")
