"""Arguments that name a target, common to several commands."""

from __future__ import annotations

import argparse
from typing import Any

from redirty.collector.errors import UsageError

_HELP = "one of -p, --tree, --cgroup, --unit, --container, --vm, or -- COMMAND at the end"


def add_target(parser: argparse.ArgumentParser, *, tracing: bool = True) -> None:
    """Add the options that name a target; -- COMMAND was split off already.

    tracing: also add --arm and --probe.
    """
    group = parser.add_argument_group("target", _HELP)
    group.add_argument(
        "-p",
        "--pid",
        action="append",
        metavar="PID",
        help="a process, by its PID or the name of its program (repeatable)",
    )
    group.add_argument(
        "--tree",
        metavar="PID",
        help="a process, by its PID or name, and its descendants, including future ones",
    )
    group.add_argument(
        "--cgroup",
        metavar="PATH",
        help="a cgroup: its directory, or its path below the mount point",
    )
    group.add_argument(
        "--unit", metavar="NAME", help="a unit of systemd: redis.service, or redis for short"
    )
    group.add_argument(
        "--container",
        metavar="NAME",
        help="a container of Docker, Podman, containerd, CRI-O or LXC, by its name or ID",
    )
    group.add_argument(
        "--vm",
        metavar="PID",
        help="a virtual machine, by the PID of its QEMU or its name: the guest's memory",
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
            options.unit is not None,
            options.container is not None,
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
    from redirty.collector.target import names, targets

    if options.pid:
        return targets.Pids([names.process_of(text) for text in options.pid])
    if options.tree is not None:
        return targets.Tree(names.tree_of(options.tree))
    if options.cgroup is not None:
        return targets.Cgroup(options.cgroup)
    if options.unit is not None:
        return targets.Cgroup(str(names.unit_cgroup(options.unit)))
    if options.container is not None:
        return targets.Cgroup(str(names.container_cgroup(options.container)))
    if options.vm is not None:
        from redirty.collector.target.guest import Guest

        return Guest(names.machine_of(options.vm))
    from redirty.collector.target.command import Command

    return Command(options.command, apart)
