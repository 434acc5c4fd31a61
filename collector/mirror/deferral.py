"""Defers hot pages to the stop-and-copy pass, as many as the downtime goal allows.

Hot are pages that were dirty in each of the last two rounds, provided that such pages used to be dirty in the
following round, too: the rule of the policy "redirty" in redirty.collector.model.policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from redirty.collector.model.policy import SURE
from redirty.collector.pageset import PageSet, empty, from_pages, page_numbers


def redirty_probability(rounds: Sequence[Sequence[PageSet]]) -> float:
    """Return the probability that a page which is dirty in two rounds is dirty in the next one too.

    Args:
        rounds: the last three rounds of each source, the latest first.

    Returns:
        0 if there were no such pages.
    """
    twice = thrice = 0
    for latest, *before in rounds:
        if len(before) >= 2:
            both = before[0] & before[1]
            twice += len(both)
            thrice += len(both & latest)
    return thrice / twice if twice else 0.0


def defer(
    rounds: Sequence[Sequence[PageSet]], pending: Sequence[PageSet], limit: int
) -> list[PageSet]:
    """Choose the pending pages of each source that wait for the last pass.

    Args:
        rounds: the last three rounds of each source, the latest first.
        pending: the pending pages of each source.
        limit: the largest number of pages to defer, over all sources.
    """
    if redirty_probability(rounds) < SURE:
        return [empty()] * len(pending)
    found = []
    for dirty, candidates in zip(rounds, pending, strict=True):
        hot = dirty[0] & dirty[1] & candidates if len(dirty) > 1 else empty()
        if len(hot) > limit:
            hot = from_pages(page_numbers(hot)[: max(limit, 0)])
        limit -= len(hot)
        found.append(hot)
    return found


def cold_first(rounds: Sequence[PageSet], pages: PageSet) -> tuple[PageSet, PageSet]:
    """Split pages into those that were not dirty in both of the last two rounds, and those that were."""
    if len(rounds) < 2:
        return pages, empty()
    hot = rounds[0] & rounds[1] & pages
    return pages - hot, hot
