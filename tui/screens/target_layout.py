"""Which panels the target screen shows in which view and size, and what its help tells."""

from __future__ import annotations

VIEWS = {
    "summary": "rates, the verdict, mappings; on a large terminal everything",
    "mappings": "mappings by re-dirty rate",
    "heat": "addresses by time",
    "convergence": "W(t) and the link, passes",
    "faults": "kinds of fault, TLB flushes",
    "writers": "threads and stacks",
}
PANELS = ("rates", "curve", "convergence", "heat", "faults", "tlb", "writers", "mappings")
CONTAINERS = {
    "top": frozenset({"rates", "curve"}),
    "middle": frozenset({"convergence", "heat"}),
    "bottom": frozenset({"faults", "tlb"}),
}
_SHOWN = {
    "mappings": frozenset({"mappings"}),
    "heat": frozenset({"heat"}),
    "convergence": frozenset({"curve", "convergence"}),
    "faults": frozenset({"faults", "tlb"}),
    "writers": frozenset({"writers"}),
}
_NARROW = frozenset({"rates", "convergence", "mappings"})
_WIDE = frozenset(PANELS) - {"writers"}
_WIDE_COLUMNS, _WIDE_LINES = 120, 36

CSS = """
TargetScreen #heading { height: 2; }
TargetScreen #beneath { height: 1; display: none; }
TargetScreen #top, TargetScreen #middle, TargetScreen #bottom { layout: vertical; height: 1fr; }
TargetScreen #rates, TargetScreen #curve, TargetScreen #convergence, TargetScreen #heat,
TargetScreen #faults, TargetScreen #tlb, TargetScreen #writers {
    border-top: solid $primary-muted; border-title-color: $text-accent; }
TargetScreen.view-summary #middle { height: 4; }
TargetScreen.view-summary.wide #middle { height: 1fr; }
TargetScreen.view-summary.wide #bottom { height: 9; }
TargetScreen.wide #top, TargetScreen.wide #middle, TargetScreen.wide #bottom {
    layout: horizontal; }
"""

HELP = """\
The target's memory in rounds: at the start of each, every page is write-protected; the first write to a \
page then faults and is counted. Rates are of the last round, those of mappings, faults, flushes, threads \
and stacks of the last 5.

  dirty       pages written in the round
  re-dirtied  of them those that were present when it began: a mirror has copied them before
  new         the others
  W(t)        distinct pages written within t of an arm; + is what the link carries in t. A pass of \
length t leaves W(t) to copy again, so where + is above the curve, passes become shorter
  missed      pages that only the page tables told of; they are in the counts

Tracing costs the first write to a page in a round a fault. What all of them take, as measured on this \
machine, and the time of arming are shown as a share of the target's CPU time; when that passes the limit \
(--max-overhead) the interval is made longer.

On a machine with several NUMA nodes: on which of them the target's page tables are, and on which it ran \
lately. A page walk by a thread on another node than the table is slower; redirty pagetables tells more, \
and moves them.
"""


def is_wide(width: int, height: int) -> bool:
    """Whether all panels fit on the screen at once."""
    return width >= _WIDE_COLUMNS and height >= _WIDE_LINES


def panels(view: str, wide: bool) -> frozenset[str]:
    """What is shown."""
    if view in _SHOWN:
        return _SHOWN[view]
    return _WIDE if wide else _NARROW
