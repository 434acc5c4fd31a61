"""Advice on page-table placement: the share of page walks that leave their node, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

_MIN_SHARE = 0.05  # a smaller share of page walks is not worth mentioning


def shares(amounts: Mapping[int, float]) -> dict[int, float]:
    """Return each node's share of the total; empty if the total is 0."""
    total = sum(amounts.values())
    return {node: amount / total for node, amount in amounts.items() if amount} if total else {}


def remote_share(tables: Mapping[int, float], ran: Mapping[int, float]) -> float | None:
    """Return the share of page walks that read a table of another node, if all memory is accessed evenly.

    Args:
        tables: Tables of the lowest level by node.
        ran: Processor time by node.

    Returns:
        The share from 0 to 1; None if there are no tables, or nothing ran.
    """
    placed, used = shares(tables), shares(ran)
    if not placed or not used:
        return None
    return sum(share * (1 - placed.get(node, 0.0)) for node, share in used.items())


def advice(
    who: str, tables: Mapping[int, float], ran: Mapping[int, float], with_memory: tuple[int, ...]
) -> str:
    """Return one sentence of placement advice.

    Args:
        who: The process as the command line takes it, '-p 1234'.
        tables: Tables of the lowest level by node.
        ran: Processor time by node.
        with_memory: The nodes that have memory.
    """
    if len(with_memory) == 1:
        return "This machine has only one node: every page walk stays on it."
    if not tables:
        return "The placement of page tables cannot be read here, so there is no advice."
    share = remote_share(tables, ran)
    if share is None:
        return "Its threads did not run meanwhile: sample while it is busy (--sample)."
    if share < _MIN_SHARE:
        return "Page walks already stay on their node: nothing to do."
    runs = {node: part for node, part in shares(ran).items() if node in with_memory}
    if not runs:
        return "Its threads run on nodes without memory: every page walk leaves its node."
    best = max(runs, key=lambda node: runs[node])
    after = 1 - runs[best]
    if share - after < _MIN_SHARE:
        return (
            f"Its threads run on several nodes, so about {after:.0%} of page walks leave theirs wherever "
            "the tables are: keep its threads on one node (numactl --cpunodebind)."
        )
    return (
        f"redirty pagetables {who} --to-node {best} --yes would lower the share of remote page walks from "
        f"{share:.0%} to {after:.0%}, as long as its threads stay where they are."
    )
