"""What the command line of redirty top asks for, checked before anything is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from redirty.collector.cli.arguments.bandwidth import bandwidth_of
from redirty.collector.cli.arguments.target import target_of, targets_named
from redirty.collector.errors import UsageError
from redirty.collector.units import parse_time
from redirty.tui.options import TopChoices
from redirty.tui.readers.live import SHORTEST_S, TopOptions
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.cost import DEFAULT_MAX

_ASSUMED = 1.25e9
_ASSUMED_SAID = "assumed; --bandwidth, --link or --to tell"


Measure = Callable[[], tuple[float, str]]


def checked(options: argparse.Namespace) -> TopChoices:
    """The choices. Starts a command that is the target. Errors: RedirtyError."""
    wanted = _wanted(options)
    asked, measure = _asked(options)
    replay = None if options.replay is None else Path(options.replay)
    if replay is not None:
        from redirty.collector.analyze import load

        load.load_meta(replay)
        return TopChoices(replay, None, wanted, asked, measure)
    from redirty.collector.linux.privileges import require_root

    require_root()
    if wanted.directory is not None:
        from redirty.collector.files import require_new

        require_new(wanted.directory)
    target = target_of(options, apart=True) if targets_named(options) else None
    return TopChoices(None, target, wanted, asked, measure)


def _wanted(options: argparse.Namespace) -> TopOptions:
    interval_s = 1.0 if options.interval is None else parse_time(options.interval)
    if interval_s < SHORTEST_S:
        raise UsageError(f"an interval of {options.interval} is too short: 10ms is the least here")
    directory = None if options.output is None else Path(options.output)
    overhead = DEFAULT_MAX if options.max_overhead is None else parse_percent(options.max_overhead)
    return TopOptions(interval_s, options.arm, options.probe, directory, overhead)


def parse_percent(text: str) -> float:
    """A share from '2', '2%', '0.5 %'. Errors: UsageError."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not 0 < value <= 100:
        raise UsageError(
            f"percentage {text!r} is not understood: write 2% (more than 0, at most 100)"
        )
    return value / 100


def _asked(options: argparse.Namespace) -> tuple[ConvergenceQuestion, Measure | None]:
    downtime_s = (
        ConvergenceQuestion(1.0).downtime_s
        if options.downtime is None
        else parse_time(options.downtime)
    )
    if downtime_s <= 0:
        raise UsageError(
            f"a downtime is more than 0: {options.downtime} (nothing is copied in no time)"
        )
    from redirty.collector.model.policy import policy_of

    policy_of(options.policy, downtime_s)
    if options.link is not None or options.to is not None:
        asked = ConvergenceQuestion(
            _ASSUMED, downtime_s, options.policy, "the link is being measured"
        )
        return asked, lambda: _bandwidth(options)
    found = bandwidth_of(options)
    if found is None:
        return ConvergenceQuestion(_ASSUMED, downtime_s, options.policy, _ASSUMED_SAID), None
    return ConvergenceQuestion(found.bytes_per_s, downtime_s, options.policy, "as given"), None


def _bandwidth(options: argparse.Namespace) -> tuple[float, str]:
    found = bandwidth_of(options)
    assert found is not None
    return found.bytes_per_s, found.source
