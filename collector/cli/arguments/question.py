"""Arguments of a question to the model that several commands have: goal, policy, and what a stop takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from redirty.collector.units import parse_positive_time, parse_time, rate_unit

if TYPE_CHECKING:
    from redirty.collector.model.prediction import Question

DEFAULT_POLICY = "redirty"


def add_question(parser: argparse._ActionsContainer, goal: str = "default: 300ms") -> None:
    """Add --downtime TIME, --policy P and --stop-cost TIME. goal: the default of the first, for the help."""
    parser.add_argument(
        "--downtime", metavar="TIME", help=f"the longest downtime of the target ({goal})"
    )
    parser.add_argument(
        "--policy",
        metavar="P",
        help="redirty, qemu, qemu-auto-converge, qemu-postcopy, qemu-multifd, qemu-dirty-limit:RATE, "
        "cloud-hypervisor, cloud-hypervisor:force, criu:N, criu-page-server:N, passes:N or xen "
        "(default: redirty)",
    )
    parser.add_argument(
        "--stop-cost",
        metavar="TIME",
        help="what stopping the target takes in addition to sending (default: as measured)",
    )


def question_of(options: argparse.Namespace) -> Callable[[float], Question]:
    """Return the question as a function of the bandwidth in bytes per second.

    So usage errors do not wait for the measurement of a link.

    Raises: UsageError for a value that is none, or a policy that there is not.
    """
    downtime_s = stop_cost_s = None
    if options.downtime is not None:
        downtime_s = parse_positive_time(options.downtime, "--downtime")
    if options.stop_cost is not None:
        stop_cost_s = parse_time(options.stop_cost, "--stop-cost")
    from redirty.collector.model.policies import policy_of
    from redirty.collector.model.prediction import Question

    policy: str = DEFAULT_POLICY if options.policy is None else options.policy
    policy_of(policy, downtime_s)
    unit = None if options.bandwidth is None else rate_unit(options.bandwidth)
    return lambda bandwidth: Question(
        bandwidth, downtime_s, policy, stop_cost_s=stop_cost_s, unit=unit
    )
