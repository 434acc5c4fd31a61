"""redirty pagetables: where a target's page tables live, and moving them between NUMA nodes."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from redirty.collector.cli.arguments.target import add_target, target_of
from redirty.collector.errors import RedirtyError, TargetEndedError, UsageError
from redirty.collector.units import parse_time

if TYPE_CHECKING:
    from redirty.collector.linux.numa import NumaNodes
    from redirty.collector.pagetables.walker import Walker

_EPILOG = """\
A page walk (on a TLB miss) that reads a table on another NUMA node takes longer. The tables of a
process stay where they were made, also when its threads and its memory went elsewhere.

--to-node moves them: memory is moved to another address and back, within the target, while its
threads are stopped, so that the kernel makes the tables anew. Contents and addresses stay. Without
--yes it only says what would move. The target stands still again and again, for --max-pause each
time, and threads that wait in some system calls (epoll_wait) return from them with EINTR once.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = "redirty pagetables TARGET [--to-node N [--yes]]"
    parser.epilog = _EPILOG
    add_target(parser, tracing=False)
    parser.add_argument(
        "--sample",
        default="1s",
        metavar="TIME",
        help="how long to see where threads run (default 1s)",
    )
    parser.add_argument("--json", action="store_true", help="for programs, on stdout")
    move = parser.add_argument_group("move")
    move.add_argument("--to-node", type=int, metavar="N", help="what moving them there would do")
    move.add_argument("--yes", action="store_true", help="move them")
    move.add_argument(
        "--max-pause",
        default="20ms",
        metavar="TIME",
        help="stop the target for no longer at a time (default 20ms)",
    )
    move.add_argument(
        "--split-huge",
        action="store_true",
        help="also where that splits huge pages into small ones",
    )
    move.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Shows, or moves."""
    sample_s = parse_time(options.sample)
    if sample_s <= 0:
        raise UsageError("--sample must be more than 0")
    max_pause_s = parse_time(options.max_pause, unit_needed=True)
    if max_pause_s <= 0:
        raise UsageError("--max-pause must be more than 0")
    if options.to_node is None and (options.yes or options.split_huge):
        raise UsageError("--yes and --split-huge are for moving: they need --to-node N")
    if options.command:
        raise UsageError("pagetables takes a target that runs: -p, --tree, --cgroup or --vm")
    target = target_of(options)
    from redirty.collector.linux import numa as host_nodes
    from redirty.collector.pagetables import placement, report
    from redirty.collector.pagetables.preconditions import require_node

    nodes = host_nodes.look()
    if options.to_node is not None:
        require_node(nodes, options.to_node)
    walker, reason = placement.walker_or_reason(nodes)
    try:
        if options.to_node is None:
            found = placement.look(target.members(), walker, nodes, sample_s)
            if options.json:
                print(json.dumps(report.as_json(found, nodes, reason), indent=2))
            else:
                print(report.as_text(found, nodes, reason), end="")
            return 0
        if walker is None:
            raise RedirtyError(f"page tables can't be moved where they can't be read: {reason}")
        return _move(options, target.members(), walker, nodes, max_pause_s)
    finally:
        if walker is not None:
            walker.close()


def _move(
    options: argparse.Namespace,
    pids: list[int],
    walker: Walker,
    nodes: NumaNodes,
    max_pause_s: float,
) -> int:
    from redirty.collector.pagetables import move as moving

    answers: list[dict[str, Any]] = []
    for pid in pids:
        what = (pid, walker, nodes, options.to_node, max_pause_s)
        try:
            if options.yes:
                answer = moving.move(
                    *what,
                    split_huge=options.split_huge,
                    progress=sys.stderr.isatty() and not options.quiet,
                )
            else:
                answer = moving.would_move(*what, split_huge=options.split_huge)
        except TargetEndedError:
            if len(pids) == 1:
                raise
            continue  # one of many
        answers.append(answer)
        if not options.json:
            print(moving.as_text(answer), end="")
    if options.json:
        print(json.dumps({"to_node": options.to_node, "processes": answers}, indent=2))
    return 0
