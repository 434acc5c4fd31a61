"""redirty check: what this kernel and this user can do, everything tried for real."""

from __future__ import annotations

import argparse
import json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.add_argument("--json", action="store_true", help="for programs, on stdout")
    parser.epilog = (
        "Each way of tracing is tried with a BPF program that does nothing, each way of arming by "
        "a round trip on a page of a child process: write, arm, write, look. Exit code 0: tracing "
        "is possible."
    )


def run(options: argparse.Namespace) -> int:
    """Checks."""
    from redirty.collector.tracking import host_check

    found = host_check.look()
    if options.json:
        print(json.dumps(host_check.as_json(found), indent=2))
    else:
        print(host_check.as_text(found), end="")
    return 0 if found.ok else 1
