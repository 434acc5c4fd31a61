"""The downtime that was asked for: how much longer a stop may last, and what became of each stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redirty.collector.units import show_time

_SHARE = 0.1
_LEAST_S = 0.005  # scheduling alone can take this long


@dataclass(frozen=True)
class FailedStop:
    """A stop that did not lead to a mirror: the target was resumed.

    Attributes:
        stood_still_s: for how long the target stood still at most.
        reason: why it was resumed.
    """

    stood_still_s: float
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dict for mirror.json."""
        return {"downtime_s": self.stood_still_s, "reason": self.reason}


def allowed_s(goal_s: float) -> float:
    """Return how long a stop may last that was to take goal_s at most: 10 % longer, or 5 ms if that is more."""
    return goal_s + _tolerance_s(goal_s)


def limit_s(goal_s: float) -> float:
    """Return after what time a stop is ended, so that also on a busy machine it lasts no longer than allowed_s()."""
    return goal_s + _tolerance_s(goal_s) / 2


def _tolerance_s(goal_s: float) -> float:
    return max(_SHARE * goal_s, _LEAST_S)


def kept(goal_s: float | None, downtime_s: float, failed: Sequence[FailedStop]) -> bool | None:
    """Return whether no stop of a mirror lasted longer than allowed; None without a goal.

    Args:
        goal_s: the downtime asked for.
        downtime_s: that of the stop that made the mirror.
        failed: the stops before.
    """
    if goal_s is None:
        return None
    longest = max([downtime_s, *(f.stood_still_s for f in failed)])
    return longest <= allowed_s(goal_s)


def broken(information: Mapping[str, Any]) -> str:
    """Say how a mirror exceeded its downtime, from the contents of mirror.json; empty if it did not."""
    goal_s = information.get("downtime_goal_s")
    if goal_s is None or information.get("kept_downtime") is not False:
        return ""
    stops = [information["downtime_s"], *(f["downtime_s"] for f in information["failed_stops"])]
    longest_s = max(stops)
    text = f"the downtime asked for was {show_time(goal_s)}, and the target stood still for {show_time(longest_s)}"
    if information.get("verified_by") == "full":
        return f"{text}, {show_time(information['verify_s'])} of it for --verify=full"
    return text
