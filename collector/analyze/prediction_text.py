"""Formats a prediction for people."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from redirty.collector.analyze import ascii_plot
from redirty.collector.model.breakdown import STOP_STEPS
from redirty.collector.model.prediction import Answer
from redirty.collector.units import RateUnit, plural, show_bytes, show_rate, show_time

_MAX_PASSES = 12  # lines for passes
_MIN_WIDTH = 9
_WORTH_A_LINE_S = 1e-6


def as_text(a: Answer, found: dict[str, Any]) -> str:
    """Format a prediction as text. found: the same prediction from predict.as_json()."""
    lines = [
        *verdict_lines(a, found),
        "",
        "W(t), distinct pages written within t of an arm:",
        *_plot(a),
        "",
        *_table(found["table"], a.question.unit),
        "",
        *[f"note: {line}" for line in found["notes"]],
    ]
    return "\n".join(lines).rstrip() + "\n"


def verdict_lines(a: Answer, found: dict[str, Any]) -> list[str]:
    """Format the verdict, its figures, reasons, parts and passes."""
    goal = found["downtime_goal_s"]
    limit = f", downtime at most {show_time(goal)}" if goal is not None else ""
    return [
        f"{found['policy']} at {show_rate(found['bandwidth_bytes_per_s'], a.question.unit)}{limit}: "
        f"{found['verdict']}",
        "",
        *_figures(found, a.question.unit),
        *_settings(found, a.question.unit),
        *[f"  - {line}" for line in found["reasons"]],
        "",
        *_parts(found),
        "",
        *_passes(found["passes"]),
    ]


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else show_time(seconds)


def _figures(found: dict[str, Any], unit: RateUnit | None) -> list[str]:
    basis = found["basis"]
    low, high = found["low"], found["high"]
    lines = []
    for name, key in (("total", "total_s"), ("downtime", "downtime_s")):
        between = f"({_time(low[key])} to {_time(high[key])})"
        lines.append(f"  {name:<13}{_time(found[key]):>11}  {between}")
    sent = show_bytes(found["transferred_bytes"])
    passes = plural(len(found["passes"]), "pass", "passes")
    end = "" if found["total_s"] is not None else ", after which nothing changes any more"
    lines.append(f"  {'transferred':<13}{sent:>11}  in {passes}{end}")
    enough, goal = found["min_bandwidth_bytes_per_s"], found["min_downtime_s"]
    if enough is not None:
        lines.append(f"  {'needs':<13}{show_rate(enough, unit):>11}  for this downtime")
    if goal is not None and found["downtime_goal_s"] is not None:
        lines.append(
            f"  {'allows':<13}{show_time(goal):>11}  of downtime, or more, at this bandwidth"
        )
    if found["new_pages_per_s"] * basis["page_size"] >= 1024:
        growth = show_bytes(found["new_pages_per_s"] * basis["page_size"])
        lines.append(f"  {'grows':<13}{growth + '/s':>11}  by new pages")
    seconds = f"{basis['seconds']:.1f} s"
    lines.append(f"  {'measured':<13}{seconds:>11}  over {plural(basis['rounds'], 'round')}")
    return lines


def _settings(found: dict[str, Any], unit: RateUnit | None) -> list[str]:
    """Format in one line what would make it converge, where it does not for sure."""
    if found["verdict"] == "converges" or found["downtime_goal_s"] is None:
        return []
    least, goal = found["settings"], found["downtime_goal_s"]
    ways = []
    if least["bandwidth_bytes_per_s"] is not None:
        ways.append(f"a bandwidth of {show_rate(least['bandwidth_bytes_per_s'], unit)}")
    if least["downtime_s"] is not None and least["downtime_s"] > goal:
        ways.append(f"a downtime of {show_time(least['downtime_s'])}")
    if least["throttle_percent"]:
        ways.append(f"a throttle of {least['throttle_percent']}%")
    return [f"  {'set':<13}at least {', or '.join(ways)}"] if ways else []


def _parts(found: dict[str, Any]) -> list[str]:
    """Format the parts of the total: those while the target runs, then those of its downtime."""
    p = found["parts"]
    zero = (
        f", {show_bytes(p['zero_pages_bytes'])} of it zero pages" if p["zero_pages_bytes"] else ""
    )
    rows = [("first pass", p["first_pass_s"], f"{show_bytes(p['first_pass_bytes'])}{zero}")]
    if p["passes"]:
        more = plural(p["passes"], "more pass", "more passes")
        rows.append((more, p["passes_s"], show_bytes(p["passes_bytes"])))
    if p["until_timeout_s"] > _WORTH_A_LINE_S:
        rows.append(("such passes", p["until_timeout_s"], "until the timeout"))
    if p["arms_s"]:
        rows.append(("arms", p["arms_s"], "before and between passes"))
    if p["stop_s"] is not None:
        rows += [
            (
                "final pass",
                p["final_pass_s"],
                f"{show_bytes(p['final_pass_bytes'])}, target stopped",
            ),
            ("stop", p["stop_s"], f"target stopped: {_stop(found)}"),
        ]
    return ["parts:", *[f"  {name:<13}{show_time(s):>11}  {why}" for name, s, why in rows]]


def _stop(found: dict[str, Any]) -> str:
    """Describe the fixed part of a stop: each step, and how it was measured."""
    stop = found["parts"]["stop"]
    steps = {name: stop[f"{name}_s"] for name in STOP_STEPS}
    if stop["given"]:
        return ", ".join(steps) + ", as given"
    arms = ""
    if stop["boundaries"]:
        between = f"{show_time(stop['low_s'])} to {show_time(stop['high_s'])}"
        arms = f" ({between} at {plural(stop['boundaries'], 'boundary', 'boundaries')})"
    known = [
        f"{name} {show_time(s)}{arms if name == 'arm' else ''}" for name, s in steps.items() if s
    ]
    unknown = ", ".join(name for name, s in steps.items() if s is None)
    text = ", ".join(known)
    return "; ".join(filter(None, [text, unknown and f"{unknown} not measured: --stop-cost"]))


def _passes(passes: list[dict[str, Any]]) -> list[str]:
    lines = [f"  {'pass':>6} {'bytes':>11} {'takes':>11}"]
    for one in passes:
        number, last = one["pass"], len(passes)
        if len(passes) > _MAX_PASSES and _MAX_PASSES // 2 < number <= last - _MAX_PASSES // 2:
            if number == _MAX_PASSES // 2 + 1:
                lines.append(f"  {'...':>6}")
            continue
        down = "  target stopped" if one["stopped"] else ""
        lines.append(
            f"  {number:>6} {show_bytes(one['bytes']):>11} {show_time(one['duration_s']):>11}{down}"
        )
    return lines


def _plot(a: Answer) -> list[str]:
    curve = a.fit.curve
    longest = max([curve.measured_s] + [p.duration_s for p in a.middle.passes])
    longest = min(longest, 16 * curve.measured_s)
    first = max(float(curve.elapsed_s[0]), longest * 1e-4)
    lines = ascii_plot.plot(curve, first, longest, curve.measured_s, (a.fit.low, a.fit.high))
    return lines or ["  nothing was written"]


def _table(rows: list[dict[str, Any]], unit: RateUnit | None) -> list[str]:
    """Format the table of total times: a line for each bandwidth, a column for each downtime goal."""
    goals = list(dict.fromkeys(row["downtime_goal_s"] for row in rows))
    heads = ["ends in" if g is None else f"in {show_time(g)}" for g in goals]
    width = max(_MIN_WIDTH, *map(len, heads))
    lines = [
        "total time, by bandwidth and downtime goal:",
        f"  {'':>13}" + "".join(f" {head:>{width}}" for head in heads),
    ]
    for bandwidth, group in groupby(rows, key=lambda row: row["bandwidth_bytes_per_s"]):
        cells = [
            show_time(row["total_s"])
            if row["converges"] and row["total_s"] is not None and math.isfinite(row["total_s"])
            else "never"
            for row in group
        ]
        shown = show_rate(bandwidth, unit)
        lines.append(f"  {shown:>13}" + "".join(f" {cell:>{width}}" for cell in cells))
    return lines
