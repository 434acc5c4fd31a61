"""The panels of the mirror screen, and the text of the confirmation before it."""

from __future__ import annotations

from redirty.collector.mirror import missing, promise
from redirty.collector.units import show_bits, show_bytes, show_pages, show_time
from redirty.tui.render.rows import Row, cell, clipped, message_rows, width_of, wrapped
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from redirty.tui.snapshots.mirror_progress import FinishedPass, PassDecision, RunningPass, Stage

_STYLES = {
    Stage.DONE: "good", Stage.FAILED: "bad", Stage.CANCELLED: "warn", Stage.CANCELLING: "warn",
    Stage.STOPPING: "warn",
}  # fmt: skip
_ACTIONS = {
    "pass": ("another pass", ""),
    "quiesce": ("stop and copy", "good"),
    "give up": ("give up", "bad"),
}
_MIN_TITLE = 12
_MIN_BAR = 6
_MAX_VERDICT_LINES = 3


def limit_text(bandwidth: float | None) -> str:
    """Return the text of a rate limit."""
    return "unlimited" if bandwidth is None else show_bits(bandwidth)


def confirmation(command: MirrorCommand, verdict: str, width: int) -> list[Row]:
    """Explain what the mirror will do, and list its options."""
    amount = f" ({show_pages(command.present_pages)})" if command.present_pages else ""
    into = (
        f"to {command.to}, where redirty receive must be listening"
        if command.over_network
        else f"into {command.to}, a new directory"
    )
    downtime = show_time(command.downtime_s)
    verified = (
        " Before the mirror counts, it is verified against digests of what was sent, while the target runs."
        if command.verify
        else ""
    )
    texts = [
        f"All memory of {command.title}{amount} is copied {into}, while the target runs; then, "
        "pass by pass, the pages it wrote meanwhile.",
        f"When the rest can be copied within {downtime}, the target is stopped, the rest is "
        f"copied, and the target is resumed: after {show_time(promise.limit_s(command.downtime_s))} "
        f"at the latest, complete or not.{verified}",
        "If it does not converge, the target is not stopped. Press x to cancel. In both cases the "
        "target keeps running and the mirror is discarded.",
        "The mirror contains all of the target's memory, including secrets (mode 0600). Tracing "
        "stops while the mirror runs, and restarts afterwards.",
    ]
    rows: list[Row] = []
    for text in texts:
        rows += wrapped(text, width)
    if verdict:
        text = "Prediction from the rounds so far: " + verdict
        rows += wrapped(text, width, "dim")[:_MAX_VERDICT_LINES]
    rows.append([])
    for key, name, value in (
        ("d", "downtime", downtime),
        ("b", "bandwidth", limit_text(command.bandwidth)),
        ("c", "code file", command.code_file or "none (for redirty receive on another machine)"),
        ("v", "verify", "yes" if command.verify else "no"),
    ):
        rows.append(clipped([(f"  {key} ", "key"), (f"{name:<11}", "dim"), (value, "")], width))
    return rows


def heading(s: MirrorSnapshot | None, width: int) -> list[Row]:
    """Return the target, the stage and the destination, and the outcome once it has ended."""
    if s is None:
        return [[("starting …", "dim")]]
    stage = s.progress.stage
    words = stage.value
    if stage is Stage.COPYING and s.progress.running is not None:
        words = f"copying, pass {s.progress.running.number}"
    state: Row = [(f" {words}", _STYLES.get(stage, "good")), (f"  {s.elapsed_s:.1f} s", "")]
    title = f"mirror of {s.command.title}"
    title = cell(title, min(len(title), max(width - width_of(state) - 2, _MIN_TITLE)), left=True)
    downtime = show_time(s.command.downtime_s)
    goals = f"  max downtime {downtime}, rate {limit_text(s.command.bandwidth)}"
    room = max(width - len(goals) - 3, _MIN_TITLE)
    to = cell(s.command.to, min(len(s.command.to), room), left=True)
    rows: list[Row] = [
        clipped([(f" {title} ", "title"), *state], width),
        clipped([("to ", "dim"), (to, ""), (goals, "dim")], width),
    ]
    return [*rows, *outcome(s, width)]


def outcome(s: MirrorSnapshot, width: int) -> list[Row]:
    """Return how the mirror ended; nothing while it runs."""
    p = s.progress
    if p.stage is Stage.DONE and p.result is not None:
        r = p.result
        too_long = promise.broken(r)
        text = (
            f"{'' if too_long else '✔ '}mirrored to {s.command.to} in {len(r['passes'])} passes, "
            f"{show_time(r['total_s'])}; {show_bytes(r['bytes'])} sent; downtime {show_time(r['downtime_s'])}"
        )
        if r["verified"]:
            text += (
                f"; verified in {show_time(r['verify_s'])} while it ran: identical to what was sent"
            )
        text += f"; {too_long}" if too_long else ""
        text += "".join(f"; {lacking}" for lacking in missing.summary(r))
        return message_rows(text, width, "warn" if too_long else "good")
    if s.message:
        bad = p.stage is Stage.FAILED
        return message_rows(("✘ " if bad else "") + s.message, width, "bad" if bad else "warn")
    return []


def progress(s: MirrorSnapshot, width: int, height: int) -> list[Row]:
    """Draw the progress of the running pass."""
    running = s.progress.running
    if running is None:
        text = {
            Stage.STARTING: "arming …",
            Stage.COPYING: "…",
            Stage.STOPPING: "target stopped for the last pass …",
            Stage.CANCELLING: "releasing the target …",
        }.get(s.progress.stage, "")
        return [clipped([(text, "dim")], width)]
    return [clipped(_bar(running, width), width)]


def _bar(p: RunningPass, width: int) -> Row:
    share = p.done_pages / p.pages if p.pages else 1.0
    text = f" {share:>4.0%} of {show_pages(p.pages)}, {show_bits(p.rate)}"
    if p.left_s is not None and p.downtime_s is not None:
        text += f", {show_time(p.left_s)} left, downtime {show_time(p.downtime_s)}"
    first = f"pass {p.number} "
    length = max(width - len(first) - len(text), _MIN_BAR)
    full = round(share * length)
    return [(first, ""), ("█" * full, "again"), ("░" * (length - full), "dim"), (text, "")]


_COLUMNS = ("pass", "sent", "took", "rate", "zero", "unchanged", "deferred", "dirty/s")
_WIDTHS = (4, 11, 10, 13, 10, 10, 10, 10)


def passes(s: MirrorSnapshot, width: int, height: int) -> list[Row]:
    """Return a row for each pass, with a bar of its duration if there is room.

    Only the first and the last passes are shown if there are too many.
    """
    head = "".join(cell(name, w) for name, w in zip(_COLUMNS, _WIDTHS, strict=True))
    rows: list[Row] = [[(head, "dim")]]
    found = s.progress.passes
    if not found:
        rows.append([("no pass is complete yet", "dim")])
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
        show_pages(p.deferred_pages) if p.deferred_pages else "",
        "stopped" if p.dirty_per_s is None else show_pages(p.dirty_per_s),
    )
    stopped = p.dirty_per_s is None
    text = "".join(cell(value, w) for value, w in zip(values, _WIDTHS, strict=True))
    row: Row = [(text, "warn" if stopped else "")]
    if p.connection_lost:
        row.append(("  connection lost", "bad"))
    elif bar >= _MIN_BAR:
        length = max(round(p.duration_s / longest_s * bar), 1)
        row.append(("  " + "█" * length, "warn" if stopped else "again"))
    return row


def decisions(s: MirrorSnapshot, width: int, height: int) -> list[Row]:
    """Return the decision after each pass with its reason; only the last ones if there are too many."""
    rows = [row for decision in s.progress.decisions for row in _decision_rows(decision, width)]
    if not rows:
        return [clipped([("the first decision follows the first pass", "dim")], width)]
    return [clipped(row, width) for row in rows[-height:]] if height > 0 else []


def _decision_rows(decision: PassDecision, width: int) -> list[Row]:
    if not decision.action:
        return wrapped(f"     {decision.reason}", width, "warn", " " * 5)
    name, style = _ACTIONS.get(decision.action, (decision.action, ""))
    text = f"{decision.after_pass:>4} {name}: {decision.reason}"
    first, *rest = wrapped(text, width, "", " " * 5)
    text = first[0][0]
    split = 5 + len(name)
    return [[(text[:5], "dim"), (text[5:split], style), (text[split:], "")], *rest]
