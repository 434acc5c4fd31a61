"""The views and panels of the target screen, its style sheet and its help."""

from __future__ import annotations

from textual.binding import Binding

VIEWS = {
    "summary": "rates, verdict, mappings; all panels on a large terminal",
    "mappings": "mappings by re-dirty rate",
    "heat": "addresses over time",
    "convergence": "W(t), the link, predicted passes",
    "faults": "write faults by type, TLB flushes",
    "writers": "threads and stacks that write",
}
VIEW_KEYS = [
    Binding(
        str(n), f"view('{name}')", name, show=False, id=f"view.{name}", tooltip=f"{name}: {what}"
    )
    for n, (name, what) in enumerate(VIEWS.items(), 1)
]
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
TargetScreen #details { height: 1; display: none; }
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
The target's memory in rounds. At the start of each round every page is write-protected (arm); the first write \
to a page then faults and is counted. Rates are those of the last round; rates of mappings, faults, flushes, \
threads and stacks are averages over the last 5 rounds.

  dirty       pages written in the round
  re-dirtied  those of them that were present when the round started: a mirror has copied them before
  new         the others
  W(t)        distinct pages written within t of an arm; + is what the link sends in t. A pass of length t \
leaves W(t) to copy again, so passes get shorter where + is above the curve
  missed      pages that faults did not report, only page tables; they are included in the counts

Tracing costs the target one fault for the first write to a page in each round. The time of these faults, as \
measured on this machine, and the time of arming are shown as a share of a core, next to what redirty itself uses; \
if it exceeds --max-overhead of a core (of the target's CPU time if that is more), rounds are made longer, up to 2 s.

On a machine with several NUMA nodes, the nodes that hold the target's page tables and those it recently ran on \
are shown. A page walk is slower if the table is on another node than the thread; redirty pagetables shows \
more, and moves page tables.
"""


def is_wide(width: int, height: int) -> bool:
    """Return True if all panels fit on the screen at once."""
    return width >= _WIDE_COLUMNS and height >= _WIDE_LINES


def panels(view: str, wide: bool) -> frozenset[str]:
    """Return the names of the panels that a view shows."""
    if view in _SHOWN:
        return _SHOWN[view]
    return _WIDE if wide else _NARROW
