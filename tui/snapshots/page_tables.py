"""Snapshots of page-table placement."""

from __future__ import annotations

from dataclasses import dataclass

from redirty.collector.pagetables.advice import shares
from redirty.collector.units import show_pages


@dataclass(frozen=True)
class PageTables:
    """Size and placement of a target's page tables.

    Attributes:
        pages: number of page-table pages as the kernel counts them (VmPTE).
        by_node: lowest-level page tables by NUMA node; empty if only one node has memory.
        ran_s: CPU seconds of the target by NUMA node since the last sample; likewise.
    """

    pages: int
    by_node: dict[int, float]
    ran_s: dict[int, float]

    def text(self) -> str:
        """Return the size and placement as one line."""
        text = f"page tables {show_pages(self.pages)}"
        if self.by_node:
            text += f": {_by_node(self.by_node)}"
        if ran := shares(self.ran_s):
            (first, *more) = ran
            text += f"; ran on node {first}" if not more else f"; ran on {_by_node(ran)}"
        return text


def _by_node(amounts: dict[int, float]) -> str:
    found = sorted(shares(amounts).items())
    return ", ".join(f"node {node} {share:.0%}" for node, share in found)
