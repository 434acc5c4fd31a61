"""Reasons why a mirror converges or not, as sentences."""

from __future__ import annotations

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
    goal = a.policy.downtime_s
    found = []
    if not a.fit.curve.pages[-1]:
        return ["nothing was written: one pass copies everything"]
    if a.middle.converges:
        down = a.middle.passes[-1]
        within = f", within {show_time(goal)}" if goal is not None else ""
        found.append(
            f"after {plural(len(a.middle.passes) - 1, 'pass', 'passes')} {show_bytes(down.bytes)} are left, which take "
            f"{show_time(down.duration_s)}{within}"
        )
    elif goal is not None and a.middle.passes:
        if a.policy.endless:
            seconds = a.middle.passes[-1].duration_s
            left = a.middle.left_bytes
            found.append(
                f"a pass of {show_time(seconds)} leaves {show_bytes(left)} to copy, and so does "
                f"the next; in {show_time(goal)} the link carries {show_bytes(bandwidth * goal)}"
            )
        else:
            down = a.middle.passes[-1]
            found.append(
                f"the last pass copies {show_bytes(down.bytes)} in {show_time(down.duration_s)}, "
                f"more than {show_time(goal)}"
            )
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


def _mapping_lines(mappings: tuple[MappingRate, ...], page: int) -> list[str]:
    """Return a line for each of the mappings that are written most."""
    total = sum(m.dirty_per_s for m in mappings)
    named = [m for m in mappings[:_MAX_NAMED] if m.dirty_per_s >= _MIN_SHARE * total]
    return [
        f"process {m.pid} writes {show_bytes(m.dirty_per_s * page)}/s ({m.dirty_per_s / total:.0%}) "
        f"in {one_line(m.name)} ({m.mapping_class})"
        for m in named
    ]
