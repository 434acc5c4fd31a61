"""Summary of a recording: numbers for programs, and lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector import json_text
from redirty.collector.analyze import counted_once, load, mappings, redirtying, tlb, writers
from redirty.collector.errors import one_line
from redirty.collector.units import plural, show_bytes, show_pages, show_time

if TYPE_CHECKING:
    import pandas as pd

_TOP = 8  # processes named in a line


def summarise(directory: Path) -> dict[str, Any]:
    """Return totals and rates of a recording as a JSON-serializable dict.

    Pages are of page_size bytes, rates per second.

    Raises: RedirtyError when the recording cannot be read.
    """
    meta = load.load_meta(directory)
    rounds = load.load_rounds(directory)
    duration_s = float(rounds["duration_s"].sum())
    pages = load.load_pages(directory)
    return {
        **_recording(directory, meta, len(rounds), duration_s),
        **_rates(rounds, duration_s),
        **{column: _total(rounds[column]) for column in _TOTALS},
        **_means(rounds),
        **counted_once.summarise(directory, rounds, duration_s),
        **_mappings(directory, rounds, pages, duration_s),
        **_pages(directory, rounds, pages),
        **writers.summarise(directory, rounds),
        "curve": _curve(load.load_curve(directory)),
        "tlb": tlb.summarise(load.load_tlb(directory), frozenset(meta.get("features", ()))),
        "distinct_frames": _distinct_frames(directory, rounds),
        "shared_outside": meta.get("shared_outside", []),
        "shared_outside_hidden": meta.get("shared_outside_hidden", 0),
    }


_KINDS = (
    "first_touch_faults",
    "write_protect_faults",
    "cow_faults",
    "mkwrite_faults",
    "huge_faults",
)
_RATES = ("dirty_pages", "redirtied_pages", "new_pages", "write_faults")
_TOTALS = (
    "missed_pages",
    "lost_events",
    "tlb_flushes",
    "tlb_flush_s",
    *_KINDS,
    "dirty_frames",
    "frameless_pages",
)


def _recording(
    directory: Path, meta: dict[str, Any], rounds: int, duration_s: float
) -> dict[str, Any]:
    """Return the description of the recording: target, method, length."""
    return {
        "directory": str(directory),
        "complete": bool(meta.get("complete")),
        "target": meta["target"],
        "probe": meta["probe"],
        "arm": meta["arm"],
        "page_size": meta["page_size"],
        "interval_s": meta["interval_s"],
        "rounds": rounds,
        "duration_s": round(duration_s, 6),
        "refused_probes": meta.get("refused_probes", {}),
        "pinned_kib": meta.get("pinned_kib"),
    }


def _rates(rounds: pd.DataFrame, duration_s: float) -> dict[str, float]:
    """Return the main counts, in all and per second."""
    found: dict[str, float] = {}
    for column in _RATES:
        total = int(rounds[column].sum())
        found[column] = total
        found[f"{column}_per_s"] = round(total / duration_s, 3) if duration_s else 0.0
    return found


def _means(rounds: pd.DataFrame) -> dict[str, float | None]:
    """Return means over rounds, and the share of dirty pages that were re-dirtied."""
    dirty, redirtied = int(rounds["dirty_pages"].sum()), int(rounds["redirtied_pages"].sum())
    some = len(rounds) > 0
    return {
        "present_pages_mean": round(float(rounds["present_pages"].mean()), 1) if some else 0,
        "arm_s_mean": round(float(rounds["arm_s"].mean()), 6) if some else 0.0,
        "redirtied_share": round(redirtied / dirty, 4) if dirty else 0.0,
        "written_1s_pages_mean": _mean(rounds["written_1s_pages"]),
    }


def _mappings(
    directory: Path, rounds: pd.DataFrame, pages: pd.DataFrame, duration_s: float
) -> dict[str, Any]:
    """Return the mappings that were written, and their sums by class."""
    last = int(rounds["round"].iloc[-1]) if len(rounds) else -1
    rows = mappings.by_mapping(load.load_mappings(directory), pages, duration_s, last)
    return {"mappings": rows, "mapping_classes": mappings.by_class(rows)}


def _pages(directory: Path, rounds: pd.DataFrame, pages: pd.DataFrame) -> dict[str, Any]:
    """Return statistics of single pages."""
    dirty_pages = int(rounds["dirty_pages"].sum())
    return {
        "pages_told_share": _share_in_pages(pages, dirty_pages),
        "pages": _by_page(pages, len(rounds), dirty_pages),
        "again": redirtying.summarise(directory, rounds, pages),
    }


def _distinct_frames(directory: Path, rounds: pd.DataFrame) -> int | None:
    """Return the number of page frames that were ever dirty; None without --physical."""
    if _total(rounds["dirty_frames"]) is None:
        return None
    return len(load.frame_numbers(load.load_physical(directory)))


def _total(column: pd.Series[Any]) -> float | int | None:
    """Return the sum; None when this kernel could not fill the column."""
    known = column.dropna()
    if known.empty:
        return None
    total = float(known.sum())
    return int(total) if total.is_integer() else round(total, 9)


def _mean(column: pd.Series[Any]) -> float | None:
    """Return the mean of what is known of a column; None when nothing is."""
    known = column.dropna()
    return None if known.empty else round(float(known.mean()), 1)


def _share_in_pages(pages: pd.DataFrame, dirty_pages: int) -> float | None:
    """Return the share of the dirty pages of all rounds that pages.csv covers.

    Less than 1 when that file was truncated, or the recorder was killed after it last wrote the file.
    """
    if dirty_pages == 0:
        return None
    share = float(pages["rounds_dirty"].sum()) / dirty_pages
    return 1.0 if share >= 1 else min(round(share, 4), 0.9999)


def _by_page(frame: pd.DataFrame, rounds: int, dirty_pages: int) -> dict[str, int | None]:
    """Count the distinct pages that were dirty ever, in more than one round, and in every round.

    None where pages.csv has no pages.
    """
    if frame.empty:
        none = None if dirty_pages else 0
        return {"ever_dirty": none, "dirty_again": none, "dirty_in_every_round": none}
    counts = frame["rounds_dirty"]
    return {
        "ever_dirty": len(frame),
        "dirty_again": int((counts > 1).sum()),
        "dirty_in_every_round": int((counts >= rounds).sum()) if rounds else 0,
    }


def _curve(frame: pd.DataFrame) -> list[dict[str, float]]:
    """Return W(t) of all processes together, at a few times."""
    import numpy as np

    if frame.empty:
        return []
    longest = float(frame["elapsed_s"].max())
    times = [t for t in counted_once.TIMES_S if t < longest] + [longest]
    found = []
    for t in times:
        total = 0.0
        for _, part in frame.groupby("pid"):
            x, y = part["elapsed_s"].to_numpy(), part["unique_dirty_pages"].to_numpy()
            total += float(np.interp(t, x, y, left=0.0))
        found.append({"elapsed_s": round(t, 6), "unique_dirty_pages": round(total, 1)})
    return found


def print_json(directory: Path) -> None:
    """Print the summary as JSON. Raises: RedirtyError as summarise() does."""
    json_text.answer.print(summarise(directory))


def against(s: dict[str, Any], bandwidth: float, source: str) -> str:
    """Format the re-dirty rate relative to a link. bandwidth: in bytes per second; source: its origin."""
    if not s["rounds"]:
        return ""
    share = counted_once.counted(s, "redirtied", "_per_s") * s["page_size"] / bandwidth
    return (
        f"\nagainst a link of {show_bytes(bandwidth)}/s ({one_line(source)}): re-dirtied at "
        f"{share:.0%} of it\n"
    )


def as_text(s: dict[str, Any]) -> str:
    """Format a summary as lines for people."""
    target = s["target"]
    lines = [
        one_line(f"{target['description']}: {target['comm']}"),
        f"{plural(s['rounds'], 'round')} of {s['interval_s']:g} s, {s['duration_s']:.1f} s in all, "
        + one_line(f"traced by {s['probe']}, armed by {s['arm']}")
        + ("" if s["complete"] else "  (ended early: complete rounds only)"),
        "",
    ]
    if s["rounds"] == 0:
        return "\n".join([*lines, "no round was completed: nothing to report"]) + "\n"
    if s["written_1s_pages_mean"] is not None:
        lines.append(
            f"  {'rewrites':<11} {show_pages(s['written_1s_pages_mean']):>11} within 1 s, however long the rounds are"
        )
    dirty, again = counted_once.counted(s, "dirty"), counted_once.counted(s, "redirtied")
    dirty_per_s, again_per_s = (
        counted_once.counted(s, "dirty", "_per_s"),
        counted_once.counted(s, "redirtied", "_per_s"),
    )
    lines += [
        _rate("dirty", dirty_per_s, int(dirty)),
        _rate("re-dirtied", again_per_s, int(again))
        + f"  {again / dirty if dirty else 0:.0%} of dirty",
        _rate("new", dirty_per_s - again_per_s, int(dirty - again)),
        f"  {'present':<11} {show_pages(counted_once.counted(s, 'present', '_mean')):>11}",
        *counted_once.as_lines(s),
        "",
        *_fault_lines(s),
        *_shared_lines(s),
        "",
        *_page_lines(s),
        *redirtying.as_lines(s["again"]),
        *_frame_lines(s),
        "W(t), distinct pages written within t of an arm: "
        + (
            ", ".join(
                f"{show_time(p['elapsed_s'])}: {show_pages(p['unique_dirty_pages'])}"
                for p in s["curve_once"] or s["curve"]
            )
            or ("unknown: curve.csv has no points" if s["dirty_pages"] else "nothing")
        ),
        "",
        *mappings.as_lines(s),
        *writers.as_lines(s),
    ]
    return "\n".join(lines) + "\n"


def _rate(name: str, pages_per_s: float, pages: int) -> str:
    return f"  {name:<11} {show_pages(pages_per_s):>11}/s  {pages:>10} {'page' if pages == 1 else 'pages'}"


def _page_lines(s: dict[str, Any]) -> list[str]:
    p, share = s["pages"], s["pages_told_share"]
    if p["ever_dirty"] is None:
        return ["distinct pages: unknown: pages.csv is missing or has no pages"]
    lines = [
        f"distinct pages: {p['ever_dirty']} ever dirty, {p['dirty_again']} in more than one round, "
        f"{p['dirty_in_every_round']} in every round"
    ]
    if share is not None and share < 1:
        lines.append(
            f"  pages.csv covers {share:.1%} of the dirty pages of all rounds: it was truncated, or the "
            "recorder was killed; figures of single pages refer to the covered ones"
        )
    return lines


def _fault_lines(s: dict[str, Any]) -> list[str]:
    shares = [
        f"{name.removesuffix('_faults').replace('_', ' ')} {s[name]}"
        for name in _KINDS
        if s[name] is not None
    ]
    lines = [f"write faults: {s['write_faults']}" + (f" ({', '.join(shares)})" if shares else "")]
    if s["missed_pages"] is None:
        lines.append("missed: unknown (no scan)")
    elif s["missed_pages"]:
        lines.append(
            f"missed: {plural(s['missed_pages'], 'page')} that only the scan found (written by the kernel, "
            "by another process, or huge): included in the dirty counts"
        )
    else:
        lines.append("missed: 0 pages (the scan found nothing that the log lacks)")
    if s["pinned_kib"]:
        lines.append(
            f"pinned: {s['pinned_kib']} KiB, where writes by io_uring or a device are not tracked: not "
            "in the counts"
        )
    lost = s["lost_events"]
    lines.append(
        f"lost: {'unknown' if lost is None else plural(lost, 'event')}"
        + ("" if not lost else "; the dirty counts are still correct, by the scan")
    )
    if s["tlb_flushes"] is not None:
        waited = "" if s["tlb_flush_s"] is None else f", {show_time(s['tlb_flush_s'])} waited for"
        lines.append(
            f"TLB flushes: {s['tlb_flushes']}{waited}; an arm took {show_time(s['arm_s_mean'])}"
        )
        lines += tlb.as_lines(s["tlb"])
    return lines


def _frame_lines(s: dict[str, Any]) -> list[str]:
    """Format the lines of a recording with --physical."""
    if s["dirty_frames"] is None:
        return []
    none = s["frameless_pages"]
    placed = s["dirty_pages"] - none
    return [
        f"page frames: {s['distinct_frames']} ever dirty; summed over rounds, "
        f"{plural(placed, 'dirty page')} in {plural(s['dirty_frames'], 'frame')}"
        + (f", {none} in none (swapped out, unmapped, or ended)" if none else "")
    ]


def _shared_lines(s: dict[str, Any]) -> list[str]:
    """Format the lines about processes outside the target that map its shared memory."""
    writers: dict[int, str] = {}
    readers: dict[int, str] = {}
    for sharer in s["shared_outside"]:
        into = writers if sharer["writable"] else readers
        into[sharer["pid"]] = one_line(sharer["comm"])
    lines = []
    if writers:
        lines.append(
            f"shared memory: {_names(writers)} outside the target can write to it, which only the "
            "scan may find, and only in part"
        )
    only = {pid: name for pid, name in readers.items() if pid not in writers}
    if only:
        lines.append(f"shared memory: {_names(only)} outside the target can read it")
    if s["shared_outside_hidden"]:
        lines.append(
            f"shared memory: {plural(s['shared_outside_hidden'], 'process', 'processes')} could "
            "not be read"
        )
    return lines


def _names(processes: dict[int, str]) -> str:
    names = [f"{pid} ({name})" for pid, name in sorted(processes.items())]
    more = f" and {len(names) - _TOP} more" if len(names) > _TOP else ""
    return ("process " if len(names) == 1 else "processes ") + ", ".join(names[:_TOP]) + more
