"""What it means where page tables lie: the share of page walks that leave their node, and advice."""

from __future__ import annotations

from collections.abc import Mapping

_WORTH = 0.05  # a share of page walks less than this is not worth a word


def shares(amounts: Mapping[int, float]) -> dict[int, float]:
    """Each node's share; empty when there is nothing."""
    total = sum(amounts.values())
    return {node: amount / total for node, amount in amounts.items() if amount} if total else {}


def remote_share(tables: Mapping[int, float], ran: Mapping[int, float]) -> float | None:
    """Share of page walks that read a table of another node, if all memory is used alike.

    tables: by node, of the lowest level; ran: processor time by node. None when either is nothing.
    """
    where, who = shares(tables), shares(ran)
    if not where or not who:
        return None
    return sum(share * (1 - where.get(node, 0.0)) for node, share in who.items())


def advice(
    who: str, tables: Mapping[int, float], ran: Mapping[int, float], with_memory: tuple[int, ...]
) -> str:
    """One sentence. who: the process as --to-node takes it, '-p 1234'."""
    if len(with_memory) == 1:
        return "This machine has one node only: every page walk stays on it."
    if not tables:
        return "Where the tables are is not known here, so there is no advice."
    share = remote_share(tables, ran)
    if share is None:
        return "Its threads did not run meanwhile: sample it at work (--sample)."
    if share < _WORTH:
        return "Page walks stay on their node as it is: nothing to do."
    runs = {node: part for node, part in shares(ran).items() if node in with_memory}
    if not runs:
        return "Its threads run where no memory is: every page walk leaves its node."
    best = max(runs, key=lambda node: runs[node])
    after = 1 - runs[best]
    if share - after < _WORTH:
        return (
            f"Its threads run on several nodes, so about {after:.0%} of page walks leave theirs wherever "
            "the tables are: keep its threads on one node (numactl --cpunodebind)."
        )
    return (
        f"redirty pagetables {who} --to-node {best} --yes would lower the share of remote page walks from "
        f"{share:.0%} to {after:.0%}, as long as its threads stay where they are."
    )
