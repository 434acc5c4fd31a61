"""The arguments that name a target, the same for every verb that takes one."""

from __future__ import annotations

import argparse
from typing import Any

from redirty.collector.errors import UsageError

_HELP = "one of -p, --tree, --cgroup, --vm, or -- COMMAND at the end"


def add_target(parser: argparse.ArgumentParser, *, tracing: bool = True) -> None:
    """-p PID (repeatable), --tree PID, --cgroup PATH, --vm PID; -- COMMAND is split off before.
    tracing: also how it is armed and traced."""
    group = parser.add_argument_group("target", _HELP)
    group.add_argument(
        "-p", "--pid", type=int, action="append", metavar="PID", help="a process (repeatable)"
    )
    group.add_argument(
        "--tree", type=int, metavar="PID", help="a process and its descendants, also those to come"
    )
    group.add_argument(
        "--cgroup", metavar="PATH", help="a cgroup: its directory, or its path below the mount"
    )
    group.add_argument(
        "--vm",
        type=int,
        metavar="PID",
        help="a virtual machine: the guest's memory in a QEMU process",
    )
    if not tracing:
        return
    how = parser.add_argument_group("how")
    how.add_argument(
        "--arm",
        choices=("auto", "soft-dirty", "uffd"),
        default="auto",
        help="how pages are write-protected (see: redirty check)",
    )
    how.add_argument(
        "--probe",
        choices=("auto", "fentry", "kprobe", "tracepoint"),
        default="auto",
        help="where in the kernel faults are seen (see: redirty check)",
    )


def targets_named(options: argparse.Namespace) -> int:
    """In how many of the ways a target is named."""
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
    """A host.targets.TargetSet. apart: a command gets neither the terminal's input nor its output.

    Errors: UsageError when there is not exactly one; RedirtyError when it is not there.
    """
    if targets_named(options) != 1:
        raise UsageError(f"give one target: {_HELP}")
    for pid in (*(options.pid or []), options.tree, options.vm):
        if pid is not None and pid <= 0:
            raise UsageError(f"a process number is above 0: {pid}")
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
