"""Pages that will surely be written again are kept for the last pass, as far as they fit the goal.

Sure are pages that were dirty in each of the last two rounds, when such pages were dirty in the round
after as well; the rule of the policy redirty in redirty.collector.model.policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from redirty.collector.model.policy import SURE
from redirty.collector.pageset import PageSet, empty, from_pages, page_numbers


def again(rounds: Sequence[Sequence[PageSet]]) -> float:
    """With which probability a page that is dirty in two rounds is dirty in the next. rounds: of each
    source the last three, the youngest first; 0 when nothing tells."""
    both = thrice = 0
    for youngest, *before in rounds:
        if len(before) >= 2:
            twice = before[0] & before[1]
            both += len(twice)
            thrice += len(twice & youngest)
    return thrice / both if both else 0.0


def hold_back(
    rounds: Sequence[Sequence[PageSet]], pending: Sequence[PageSet], most: int
) -> list[PageSet]:
    """Of what is pending in each source, what waits for the last pass: at most so many pages in all."""
    if again(rounds) < SURE:
        return [empty()] * len(pending)
    found = []
    for dirty, waiting in zip(rounds, pending, strict=True):
        hot = dirty[0] & dirty[1] & waiting if len(dirty) > 1 else empty()
        if len(hot) > most:
            hot = from_pages(page_numbers(hot)[: max(most, 0)])
        most -= len(hot)
        found.append(hot)
    return found


def cold_first(rounds: Sequence[PageSet], pages: PageSet) -> tuple[PageSet, PageSet]:
    """Pages apart: those that were not dirty in both of the last two rounds, and those that were."""
    if len(rounds) < 2:
        return pages, empty()
    hot = rounds[0] & rounds[1] & pages
    return pages - hot, hot
