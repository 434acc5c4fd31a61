"""redirty report: summarizes a recording on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from redirty.collector import json_text
from redirty.collector.cli.arguments.bandwidth import add_bandwidth, bandwidth_of
from redirty.collector.cli.arguments.question import add_question, question_of
from redirty.collector.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", metavar="DIR", help="a recording")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    add_bandwidth(parser, "also predict a mirror over a link, as redirty predict does; one of")
    add_question(parser.add_argument_group("with a bandwidth"))


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    question_at = question_of(options)
    bandwidth = bandwidth_of(options)
    if bandwidth is None:
        _require_no_question(options)
    directory = Path(options.directory)
    from redirty.collector.analyze import summary

    found = summary.summarise(directory)
    predicted: dict[str, Any] | None = None
    if bandwidth is not None and found["rounds"]:
        from redirty.collector.analyze.prediction import predict

        answer, predicted = predict(directory, question_at(bandwidth.bytes_per_s))
    if options.json:
        if bandwidth is not None:
            found |= {**bandwidth.as_json(), "prediction": predicted}
        json_text.answer.print(found)
        return 0
    from redirty.collector.analyze import ascii_plot

    print(summary.as_text(found), end="")
    if bandwidth is not None:
        print(summary.against(found, bandwidth.bytes_per_s, bandwidth.source), end="")
    if predicted is not None:
        from redirty.collector.analyze.prediction_text import verdict_lines

        print("", *verdict_lines(answer, predicted), sep="\n")
    curve = ascii_plot.of_recording(directory)
    if curve:
        print("\nW(t), distinct pages written within t of an arm:", *curve, sep="\n")
    return 0


def _require_no_question(options: argparse.Namespace) -> None:
    """Raise UsageError for an option that needs a bandwidth."""
    for value, name in (
        (options.downtime, "--downtime"),
        (options.policy, "--policy"),
        (options.stop_cost, "--stop-cost"),
    ):
        if value is not None:
            raise UsageError(f"{name} needs a bandwidth: --bandwidth, --link or --to")
