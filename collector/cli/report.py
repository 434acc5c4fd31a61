"""redirty report: sums a recording up on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from redirty.collector.units import parse_rate


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.add_argument("directory", metavar="DIR", help="a recording")
    parser.add_argument("--json", action="store_true", help="for programs, on stdout")
    parser.add_argument(
        "--bandwidth",
        metavar="RATE",
        help="also compare with a link: 10Gbit, 1.25GB, 200MiB (per second)",
    )


def run(options: argparse.Namespace) -> int:
    """Reports."""
    bandwidth = None if options.bandwidth is None else parse_rate(options.bandwidth)
    from redirty.collector.analyze import summary

    if options.json:
        summary.print_json(Path(options.directory))
    else:
        from redirty.collector.analyze import plot

        directory = Path(options.directory)
        print(summary.as_text(summary.summarise(directory), bandwidth), end="")
        curve = plot.of_recording(directory)
        if curve:
            print("\nW(t), distinct pages written within t of an arm:", *curve, sep="\n")
    return 0
