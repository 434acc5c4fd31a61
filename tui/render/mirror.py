"""The mirror screen, and the question before it, as rows."""

from __future__ import annotations

from redirty.collector.units import show_bits, show_bytes, show_pages, show_time
from redirty.tui.render.rows import Row, cell, clipped, told, width_of, wrapped
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from redirty.tui.snapshots.mirror_progress import FinishedPass, PassDecision, RunningPass, Stage

_STYLES = {
    Stage.DONE: "good", Stage.FAILED: "bad", Stage.CANCELLED: "warn", Stage.CANCELLING: "warn",
    Stage.STOPPING: "warn",
}  # fmt: skip
_ACTIONS = {
    "pass": ("another pass", ""),
    "quiesce": ("stop it now", "good"),
    "give up": ("give up", "bad"),
}
_LEAST_TITLE = 12
_LEAST_BAR = 6
_VERDICT_LINES = 3


def rate_said(bandwidth: float | None) -> str:
    """A limit."""
    return "as fast as it goes" if bandwidth is None else show_bits(bandwidth)


def question(wish: MirrorCommand, verdict: str, width: int) -> list[Row]:
    """What will happen, before it does."""
    amount = f" ({show_pages(wish.present_pages)})" if wish.present_pages else ""
    into = (
        f"to {wish.to}, where redirty receive has to listen"
        if wish.over_network
        else f"into {wish.to}, a new directory"
    )
    downtime = show_time(wish.downtime_s)
    checked = ", compared with the mirror, which takes longer," if wish.verify else ""
    texts = [
        f"All memory of {wish.title}{amount} is copied {into}, while it runs; then again and again "
        "what it wrote meanwhile.",
        f"When the rest can be copied within {downtime} it is stopped for that{checked} and runs "
        f"again. After {show_time(2 * wish.downtime_s)} at most it is let go of, done or not.",
        "When that will not come it is left alone, and there is no mirror. x cancels, likewise.",
        "The mirror is its memory, secrets included (0600). The rounds shown here end first, and "
        "begin anew afterwards.",
    ]
    rows: list[Row] = []
    for text in texts:
        rows += wrapped(text, width)
    if verdict:
        text = "Would it converge, by what was measured here: " + verdict
        rows += wrapped(text, width, "dim")[:_VERDICT_LINES]
    rows.append([])
    for key, name, value in (
        ("d", "downtime", downtime),
        ("b", "bandwidth", rate_said(wish.bandwidth)),
        ("c", "code file", wish.code_file or "none (for another machine's redirty receive)"),
        ("v", "verify", "yes" if wish.verify else "no"),
    ):
        rows.append(clipped([(f"  {key} ", "key"), (f"{name:<11}", "dim"), (value, "")], width))
    return rows


def heading(s: MirrorSnapshot | None, width: int) -> list[Row]:
    """Who, what it does, where to; then how it ended."""
    if s is None:
        return [[("starting …", "dim")]]
    stage = s.progress.stage
    words = stage.value
    if stage is Stage.COPYING and s.progress.going is not None:
        words = f"copying, pass {s.progress.going.number}"
    state: Row = [(f" {words}", _STYLES.get(stage, "good")), (f"  {s.elapsed_s:.1f} s", "")]
    title = f"mirror of {s.wish.title}"
    title = cell(title, min(len(title), max(width - width_of(state) - 2, _LEAST_TITLE)), left=True)
    limit = rate_said(s.wish.bandwidth)
    goals = f"  downtime at most {show_time(s.wish.downtime_s)}, {limit}"
    room = max(width - len(goals) - 3, _LEAST_TITLE)
    to = cell(s.wish.to, min(len(s.wish.to), room), left=True)
    rows: list[Row] = [
        clipped([(f" {title} ", "title"), *state], width),
        clipped([("to ", "dim"), (to, ""), (goals, "dim")], width),
    ]
    return [*rows, *outcome(s, width)]


def outcome(s: MirrorSnapshot, width: int) -> list[Row]:
    """How it ended, in words."""
    p = s.progress
    if p.stage is Stage.DONE and p.result is not None:
        r = p.result
        text = (
            f"✔ mirrored to {s.wish.to} in {len(r['passes'])} passes, {show_time(r['total_s'])}; "
            f"{show_bytes(r['bytes'])} sent; it stood still for {show_time(r['downtime_s'])}"
        )
        if r["verified"]:
            compared = show_time(r["verify_s"])
            text += f", {compared} of it to compare: the mirror is what its memory was"
        if r["unmirrored"]:
            text += f"; {len(r['unmirrored'])} mappings of devices have no contents in it"
        return told(text, width, "good")
    if s.message:
        bad = p.stage is Stage.FAILED
        return told(("✘ " if bad else "") + s.message, width, "bad" if bad else "warn")
    return []


def progress(s: MirrorSnapshot, width: int, height: int) -> list[Row]:
    """How far the pass is."""
    g = s.progress.going
    if g is None:
        said = {
            Stage.STARTING: "arming …",
            Stage.COPYING: "…",
            Stage.STOPPING: "the target stands still for the last pass …",
            Stage.CANCELLING: "letting go of the target …",
        }.get(s.progress.stage, "")
        return [clipped([(said, "dim")], width)]
    return [clipped(_bar(g, width), width)]


def _bar(g: RunningPass, width: int) -> Row:
    share = g.done_pages / g.pages if g.pages else 1.0
    text = f" {share:>4.0%} of {show_pages(g.pages)}, {show_bits(g.rate)}"
    if g.left_s is not None and g.downtime_s is not None:
        text += f", {show_time(g.left_s)} left, downtime {show_time(g.downtime_s)}"
    first = f"pass {g.number} "
    length = max(width - len(first) - len(text), _LEAST_BAR)
    full = round(share * length)
    return [(first, ""), ("█" * full, "again"), ("░" * (length - full), "dim"), (text, "")]


_COLUMNS = ("pass", "sent", "took", "rate", "zero", "unchanged", "kept", "dirty/s")
_WIDTHS = (4, 11, 10, 13, 10, 10, 10, 10)


def passes(s: MirrorSnapshot, width: int, height: int) -> list[Row]:
    """A row each; of many the first and the last ones. With room, a bar of what it took."""
    head = "".join(cell(name, w) for name, w in zip(_COLUMNS, _WIDTHS, strict=True))
    rows: list[Row] = [[(head, "dim")]]
    found = s.progress.passes
    if not found:
        rows.append([("none is over yet", "dim")])
        return [clipped(row, width) for row in rows][:height]
    room = max(height - 1, 1)
    shown: list[FinishedPass | None] = list(found)
    if len(found) > room:
        tail = max(room - 2, 1)
        shown = [*found[:1], None, *found[-tail:]][-room:]
    longest = max(p.duration_s for p in found) or 1.0
    bar = width - sum(_WIDTHS) - 2
    for p in shown:
        if p is None:
            rows.append([(f"   …  {len(found)} passes", "dim")])
            continue
        rows.append(_pass_row(p, longest, bar))
    return [clipped(row, width) for row in rows][:height]


def _pass_row(p: FinishedPass, longest_s: float, bar: int) -> Row:
    values = (
        str(p.number),
        show_bytes(p.bytes),
        show_time(p.duration_s),
        show_bits(p.rate),
        show_pages(p.zero_pages),
        show_pages(p.unchanged_pages),
        show_pages(p.held_pages) if p.held_pages else "",
        "stopped" if p.dirty_per_s is None else show_pages(p.dirty_per_s),
    )
    stopped = p.dirty_per_s is None
    text = "".join(cell(value, w) for value, w in zip(values, _WIDTHS, strict=True))
    row: Row = [(text, "warn" if stopped else "")]
    if p.broken:
        row.append(("  the connection broke", "bad"))
    elif bar >= _LEAST_BAR:
        length = max(round(p.duration_s / longest_s * bar), 1)
        row.append(("  " + "█" * length, "warn" if stopped else "again"))
    return row


def steps(s: MirrorSnapshot, width: int, height: int) -> list[Row]:
    """What was decided after each pass, and why; the last ones, where not all fit."""
    rows = [row for step in s.progress.steps for row in _step_rows(step, width)]
    if not rows:
        return [clipped([("nothing is decided before the first pass is over", "dim")], width)]
    return [clipped(row, width) for row in rows[-height:]] if height > 0 else []


def _step_rows(step: PassDecision, width: int) -> list[Row]:
    if not step.action:
        return wrapped(f"     {step.reason}", width, "warn", " " * 5)
    name, style = _ACTIONS.get(step.action, (step.action, ""))
    first, *rest = wrapped(f"{step.after_pass:>4} {name}: {step.reason}", width, "", " " * 5)
    text = first[0][0]
    split = 5 + len(name)
    return [[(text[:5], "dim"), (text[5:split], style), (text[split:], "")], *rest]
