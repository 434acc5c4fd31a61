"""Reasons why a mirror converges or not, as sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from redirty.collector.errors import one_line
from redirty.collector.model.observations import MappingRate
from redirty.collector.units import plural, show_bytes, show_time

if TYPE_CHECKING:
    from redirty.collector.model.prediction import Answer

_MAX_NAMED = 3  # mappings
_MIN_SHARE = 0.05  # of all writes, for a mapping to be named


def reasons_of(
    a: Answer, classes: dict[str, dict[str, float]], mappings: tuple[MappingRate, ...]
) -> list[str]:
    """Return the reasons, one line each.

    classes: as in predict.as_json(); mappings: those written most first.
    """
    page = a.fit.page_size
    bandwidth = a.question.bandwidth
    found = []
    if a.middle.converges and not a.fit.curve.pages[-1]:
        return ["nothing was written: one pass copies everything"]
    found.append(_how_it_converges(a) if a.middle.converges else obstacle(a))
    if a.verdict == "uncertain":
        found.append(_why_uncertain(a))
    growth = a.fit.growth_per_s * page
    if growth >= 0.05 * bandwidth:
        found.append(
            f"the target's memory grows by {show_bytes(growth)}/s, {growth / bandwidth:.0%} of the bandwidth"
        )
    if len(classes) > 1:
        shares = sorted(classes.items(), key=lambda item: -item[1]["share"])
        found.append(
            "re-dirtied in such a pass: "
            + ", ".join(f"{name} {c['share']:.0%}" for name, c in shares if c["share"] >= 0.005)
        )
    found += _mapping_lines(mappings, page)
    return found


def _how_it_converges(a: Answer) -> str:
    down, goal, stop_s = a.middle.passes[-1], a.policy.downtime_s, a.policy.stop_s
    if a.policy.postcopy:
        return (
            f"the target moves after one pass: {show_bytes(down.bytes)} follow while it runs at the other end, "
            f"in {show_time(down.duration_s)}"
        )
    takes = f"which take {show_time(down.duration_s)}"
    if stop_s:
        takes += f", and stopping {show_time(stop_s)}"
    within = "" if goal is None else f", within {show_time(goal)}"
    if stop_s and goal is not None and not a.policy.counts_stop:
        within += f" for the sending: {a.policy.name} does not count the rest"
    return (
        f"after {plural(len(a.middle.passes) - 1, 'pass', 'passes')} {show_bytes(down.bytes)} are left, "
        f"{takes}{within}"
    )


def obstacle(a: Answer) -> str:
    """Return why the expected outcome does not converge: the very comparison that the policy makes."""
    goal, stop_s = a.policy.downtime_s or 0.0, a.policy.stop_s
    counted_s = stop_s if a.policy.counts_stop else 0.0
    if counted_s > goal:
        return f"stopping alone takes {show_time(stop_s)}, more than {show_time(goal)}, at any bandwidth"
    last = a.middle.passes[-1]
    if math.isfinite(a.middle.total_s):
        and_stop = f" and stopping takes {show_time(stop_s)}" if counted_s else ""
        return (
            f"the last pass copies {show_bytes(last.bytes)} in {show_time(last.duration_s)}{and_stop}, "
            f"more than {show_time(goal)}"
        )
    left, carried = a.middle.pending_bytes, a.question.bandwidth * (goal - counted_s)
    shown, limit = show_bytes(left), show_bytes(carried)
    if shown == limit:
        limit += ", a little less"
    within = show_time(goal)
    if counted_s:
        within = f"the {show_time(goal - counted_s)} that stopping leaves of {within}"
    return (
        f"a pass of {show_time(last.duration_s)} leaves {shown} to copy, and so does the next; "
        f"in {within} the link carries {limit}"
    )


def _why_uncertain(a: Answer) -> str:
    if a.middle.converges:
        when, verdict = "the most written of the rounds, in a busy moment or at a tenth less", "not"
    else:
        when, verdict = "the least written of the rounds, in a quiet moment or at a tenth more", ""
    return f"uncertain: with {when} bandwidth it would {verdict} converge".replace("  ", " ")


def _mapping_lines(mappings: tuple[MappingRate, ...], page: int) -> list[str]:
    """Return a line for each of the mappings that are written most."""
    total = sum(m.dirty_per_s for m in mappings)
    named = [m for m in mappings[:_MAX_NAMED] if m.dirty_per_s >= _MIN_SHARE * total]
    return [
        f"process {m.pid} writes {show_bytes(m.dirty_per_s * page)}/s ({m.dirty_per_s / total:.0%}) "
        f"in {one_line(m.name)} ({m.mapping_class})"
        for m in named
    ]
