"""Options that take a time above zero: --downtime, --deadline, --patience."""

from __future__ import annotations

from redirty.collector.errors import UsageError
from redirty.collector.units import parse_time

_DAY_S = 86400.0


def parse_downtime(text: str, max_s: float | None = None) -> float:
    """Return the value of --downtime in seconds.

    Raises:
        UsageError: not a time, not positive, or above `max_s`.
    """
    return positive_time("--downtime", text, max_s)


def positive_time(option: str, text: str, max_s: float | None = None) -> float:
    """Return the value of an option in seconds.

    Raises:
        UsageError: not a time, not positive, or above `max_s`.
    """
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"{option} must be positive, got {text}")
    if max_s is not None and seconds > max_s:
        raise UsageError(f"{option} must be at most {max_s / _DAY_S:.0f} days, got {text}")
    return seconds
