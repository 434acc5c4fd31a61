"""The argument that names the length of a round, common to the commands that record."""

from __future__ import annotations

from redirty.collector.errors import UsageError
from redirty.collector.units import parse_time

_MIN_S = 0.001


def interval_of(text: str, name: str) -> float:
    """Parse the length of a round in seconds. name: of the argument, for the message.

    Raises: UsageError when it is not a time, or too short.
    """
    interval_s = parse_time(text, name, bare_seconds=True)
    if interval_s < _MIN_S:
        raise UsageError(f"{name} must be at least 1ms, got {text}; 100ms is usual")
    return interval_s
