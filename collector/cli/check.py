"""redirty check: reports what this kernel and this user can do, by trying it."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.epilog = (
        "Each kind of probe is tried with a BPF program that does nothing, each method of arming by a "
        "round trip on a page of a child process: write, arm, write, scan. Exit code 0: tracing is "
        "possible."
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from redirty.collector import json_text
    from redirty.collector.tracking import host_check

    found = host_check.probe_host()
    if options.json:
        json_text.answer.print(host_check.as_json(found))
    else:
        print(host_check.as_text(found), end="")
    return 0 if found.ok else 1
