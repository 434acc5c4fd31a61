"""redirty report: summarizes a recording on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from redirty.collector.cli.arguments.bandwidth import add_bandwidth, bandwidth_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="a recording")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    add_bandwidth(parser, "also compare the re-dirty rate with a link; one of")


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    bandwidth = bandwidth_of(options)
    from redirty.collector.analyze import summary

    directory = Path(options.directory)
    if options.json:
        summary.print_json(directory, {} if bandwidth is None else bandwidth.as_json())
        return 0
    from redirty.collector.analyze import ascii_plot

    found = summary.summarise(directory)
    print(summary.as_text(found), end="")
    if bandwidth is not None:
        print(summary.against(found, bandwidth.bytes_per_s, bandwidth.source), end="")
    curve = ascii_plot.of_recording(directory)
    if curve:
        print("\nW(t), distinct pages written within t of an arm:", *curve, sep="\n")
    return 0
