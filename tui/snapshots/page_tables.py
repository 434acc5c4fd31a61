"""Snapshots of page-table placement."""

from __future__ import annotations

from dataclasses import dataclass

from redirty.collector.pagetables.advice import shares
from redirty.collector.units import show_pages


@dataclass(frozen=True)
class PageTables:
    """pages: as the kernel counts them (VmPTE). by_node: of the lowest level, on each node; ran_s: what
    the target used of processors since the look before, by node; both empty where one alone has memory."""

    pages: int
    by_node: dict[int, float]
    ran_s: dict[int, float]

    def said(self) -> str:
        """In words."""
        text = f"page tables {show_pages(self.pages)}"
        if self.by_node:
            text += f": {_parts(self.by_node, 'node ')}"
        if ran := shares(self.ran_s):
            (first, *more) = ran
            text += f"; ran on node {first}" if not more else f"; ran on {_parts(ran, 'node ')}"
        return text


def _parts(amounts: dict[int, float], word: str) -> str:
    found = sorted(shares(amounts).items())
    return ", ".join(f"{word}{node} {share:.0%}" for node, share in found)
