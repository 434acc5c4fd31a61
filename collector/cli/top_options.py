"""Checks the command line of redirty top before anything is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from redirty.collector.cli.arguments.bandwidth import bandwidth_of
from redirty.collector.cli.arguments.question import question_of
from redirty.collector.cli.arguments.target import target_of, targets_named
from redirty.collector.errors import UsageError
from redirty.collector.model.policy import DEFAULT_DOWNTIME_S
from redirty.collector.units import parse_time
from redirty.tui.options import TopChoices
from redirty.tui.readers.live import MIN_INTERVAL_S, TopOptions
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.cost import DEFAULT_MAX

_ASSUMED = 1.25e9  # bytes per second
_ASSUMED_SOURCE = "assumed; set it with --bandwidth, --link or --to"

Measure = Callable[[], tuple[float, str]]


def choices_of(options: argparse.Namespace) -> TopChoices:
    """Return what to show, starting the target if it is a command.

    Raises:
        RedirtyError: an option has no valid value, or the recording or target cannot be used.
    """
    trace = _trace_options(options)
    question, measure = _question(options)
    replay = None if options.replay is None else Path(options.replay)
    if replay is not None:
        from redirty.collector.analyze import load

        load.load_meta(replay)
        return TopChoices(replay, None, trace, question, measure)
    from redirty.collector.linux.privileges import require_root

    require_root()
    if trace.directory is not None:
        from redirty.collector.files import require_new

        require_new(trace.directory)
    target = target_of(options, apart=True) if targets_named(options) else None
    return TopChoices(None, target, trace, question, measure)


def _trace_options(options: argparse.Namespace) -> TopOptions:
    interval_s = (
        1.0
        if options.interval is None
        else parse_time(options.interval, "interval", bare_seconds=True)
    )
    if interval_s < MIN_INTERVAL_S:
        raise UsageError(f"interval must be at least 10ms, got {options.interval}")
    directory = None if options.output is None else Path(options.output)
    overhead = DEFAULT_MAX if options.max_overhead is None else parse_percent(options.max_overhead)
    return TopOptions(interval_s, options.arm, options.probe, directory, overhead)


def parse_percent(text: str) -> float:
    """Parse a percentage like '2', '2%' or '0.5 %' and return it as a fraction of 1.

    Raises:
        UsageError: the text is not a number above 0 and up to 100.
    """
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not 0 < value <= 100:
        raise UsageError(
            f"--max-overhead must be a percentage above 0 and up to 100, like 2%, got {text!r}"
        )
    return value / 100


def _question(options: argparse.Namespace) -> tuple[ConvergenceQuestion, Measure | None]:
    """Return the question to the model, and a function that measures the link if one is named."""
    asked = question_of(options)(_ASSUMED)
    question = ConvergenceQuestion(
        bandwidth=_ASSUMED,
        downtime_s=DEFAULT_DOWNTIME_S if asked.downtime_s is None else asked.downtime_s,
        policy=asked.policy,
        source=_ASSUMED_SOURCE,
        stop_cost_s=asked.stop_cost_s,
        unit=asked.unit,
        downtime_asked=asked.downtime_s is not None,
    )
    if options.link is not None or options.to is not None:
        return replace(question, source="the link is being measured"), lambda: _measure(options)
    found = bandwidth_of(options)
    if found is None:
        return question, None
    return replace(question, bandwidth=found.bytes_per_s, source="as given"), None


def _measure(options: argparse.Namespace) -> tuple[float, str]:
    found = bandwidth_of(options)
    assert found is not None
    return found.bytes_per_s, found.source
