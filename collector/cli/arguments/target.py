"""Arguments that name a target, common to several commands."""

from __future__ import annotations

import argparse
from typing import Any

from redirty.collector.errors import UsageError

_HELP = "one of -p, --tree, --cgroup, --vm, or -- COMMAND at the end"


def add_target(parser: argparse.ArgumentParser, *, tracing: bool = True) -> None:
    """Add -p PID (repeatable), --tree PID, --cgroup PATH and --vm PID; -- COMMAND was split off already.

    tracing: also add --arm and --probe.
    """
    group = parser.add_argument_group("target", _HELP)
    group.add_argument(
        "-p", "--pid", type=int, action="append", metavar="PID", help="a process (repeatable)"
    )
    group.add_argument(
        "--tree",
        type=int,
        metavar="PID",
        help="a process and its descendants, including future ones",
    )
    group.add_argument(
        "--cgroup",
        metavar="PATH",
        help="a cgroup: its directory, or its path below the mount point",
    )
    group.add_argument(
        "--vm",
        type=int,
        metavar="PID",
        help="a virtual machine: the guest's memory in a QEMU process",
    )
    if not tracing:
        return
    how = parser.add_argument_group("tracing")
    how.add_argument(
        "--arm",
        choices=("auto", "soft-dirty", "uffd"),
        default="auto",
        help="method of write-protecting pages (see: redirty check)",
    )
    how.add_argument(
        "--probe",
        choices=("auto", "fentry", "kprobe", "tracepoint"),
        default="auto",
        help="kind of probe that logs faults (see: redirty check)",
    )


def targets_named(options: argparse.Namespace) -> int:
    """Count the arguments that name a target."""
    return sum(
        (
            bool(options.pid),
            options.tree is not None,
            options.cgroup is not None,
            options.vm is not None,
            bool(options.command),
        )
    )


def target_of(options: argparse.Namespace, *, apart: bool = False) -> Any:
    """Return the target, a target.targets.TargetSet.

    apart: start a command detached from the terminal, without its input and output.

    Raises: UsageError when not exactly one target is named; RedirtyError when it does not exist.
    """
    if targets_named(options) != 1:
        raise UsageError(f"specify exactly one target: {_HELP}")
    for pid in [*(options.pid or ()), options.tree, options.vm]:
        if pid is not None and pid <= 0:
            raise UsageError(f"a process ID must be positive, got {pid}")
    from redirty.collector.target import targets

    if options.pid:
        return targets.Pids(options.pid)
    if options.tree is not None:
        return targets.Tree(options.tree)
    if options.cgroup is not None:
        return targets.Cgroup(options.cgroup)
    if options.vm is not None:
        from redirty.collector.target.guest import Guest

        return Guest(options.vm)
    from redirty.collector.target.command import Command

    return Command(options.command, apart)
