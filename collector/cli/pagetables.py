"""redirty pagetables: shows where a target's page tables lie, and moves them between NUMA nodes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from redirty.collector import json_text
from redirty.collector.cli.arguments.target import add_target, target_of
from redirty.collector.errors import RedirtyError, TargetEndedError, UsageError
from redirty.collector.units import parse_positive_time

if TYPE_CHECKING:
    from redirty.collector.pagetables.relocation import RelocationLimits, RelocationTarget

_EPILOG = """\
A page walk (on a TLB miss) that reads a table on another NUMA node takes longer. The tables of a
process stay where they were allocated, also when its threads and its memory have moved.

--to-node moves them: memory is moved to another address and back, within the target, while its
threads are stopped, so that the kernel allocates new tables. Contents and addresses stay. Without
--yes it only reports what would move. The target is stopped repeatedly, for at most --max-pause each
time, and threads that wait in some system calls (epoll_wait) return from them with EINTR once.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty pagetables TARGET [--to-node N [--yes]]"
    parser.epilog = _EPILOG
    add_target(parser, tracing=False)
    parser.add_argument(
        "--sample",
        default="1s",
        metavar="TIME",
        help="how long to sample where threads run (default 1s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    move = parser.add_argument_group("move")
    move.add_argument(
        "--to-node",
        type=int,
        metavar="N",
        help="show what moving page tables to this node would do",
    )
    move.add_argument("--yes", action="store_true", help="actually move them")
    move.add_argument(
        "--max-pause",
        default="20ms",
        metavar="TIME",
        help="how long the target may be stopped at a time (default 20ms)",
    )
    move.add_argument(
        "--split-huge",
        action="store_true",
        help="move tables also where that splits huge pages into small ones",
    )
    move.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> int:
    """Show page-table placement, or move page tables."""
    sample_s = parse_positive_time(options.sample, "--sample")
    max_pause_s = parse_positive_time(options.max_pause, "--max-pause")
    if options.to_node is None and (options.yes or options.split_huge):
        raise UsageError("--yes and --split-huge need --to-node N")
    if options.command:
        raise UsageError("pagetables needs a running target: give -p, --tree, --cgroup or --vm")
    target = target_of(options)
    from redirty.collector.linux import numa
    from redirty.collector.pagetables import placement, report
    from redirty.collector.pagetables.preconditions import require_node
    from redirty.collector.pagetables.relocation import RelocationLimits, RelocationTarget

    nodes = numa.read_nodes()
    if options.to_node is not None:
        require_node(nodes, options.to_node)
    walker, reason = placement.walker_or_reason(nodes)
    try:
        if options.to_node is None:
            found = placement.measure(target.members(), walker, nodes, sample_s)
            if options.json:
                json_text.answer.print(report.as_json(found, nodes, reason))
            else:
                print(report.as_text(found, nodes, reason), end="")
            return 0
        if walker is None:
            raise RedirtyError(
                f"page tables cannot be moved, as they cannot be read here: {reason}"
            )
        limits = RelocationLimits(max_pause_s, split_huge=options.split_huge)
        targets = [RelocationTarget(pid, walker, nodes) for pid in target.members()]
        return _move(options, targets, limits)
    finally:
        if walker is not None:
            walker.close()


def _move(
    options: argparse.Namespace, targets: list[RelocationTarget], limits: RelocationLimits
) -> int:
    from redirty.collector.pagetables import move

    answers: list[dict[str, Any]] = []
    for target in targets:
        try:
            if options.yes:
                progress = sys.stderr.isatty() and not options.quiet
                answer = move.move(target, options.to_node, limits, progress=progress)
            else:
                answer = move.would_move(target, options.to_node, limits)
        except TargetEndedError:
            if len(targets) == 1:
                raise
            continue  # one of many
        answers.append(answer)
        if not options.json:
            print(move.as_text(answer), end="")
    if options.json:
        json_text.answer.print({"to_node": options.to_node, "processes": answers})
    return 0
