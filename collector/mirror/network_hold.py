"""Whether what a target sends may be held while it stands still: not when that would hit others."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from redirty.collector.errors import RedirtyError
from redirty.collector.linux.netns import name_of, networks_of, others_in
from redirty.collector.ptrace.freezer_client import FreezeError, Freezer


@dataclass(frozen=True)
class NetworkHold:
    """The wish to hold what a target's network namespaces send. shared: also where processes outside the
    target are in them. far: the mirror itself goes out over a network."""

    shared: bool = False
    far: bool = False

    def require_own(self, pids: Collection[int]) -> None:
        """Errors: RedirtyError when others would be held, too, and that was not wished for, or redirty
        itself would."""
        networks = set().union(*map(networks_of, pids))
        if self.far and networks_of(os.getpid()) & networks:
            raise RedirtyError(
                "the target's network cannot be held: redirty is in the same network namespace, and would cut "
                "itself off from the other end; leave --hold-network out, or mirror to a directory"
            )
        others = [] if self.shared else others_in(networks, pids)
        if others:
            more = f" and {len(others) - 1} more that are" if len(others) > 1 else ", which is"
            raise RedirtyError(
                f"the target's network cannot be held alone: {name_of(others[0])}{more} not in the target, in "
                "the same network namespace; --hold-network=shared holds what they send, too"
            )

    def require_possible(self, holding: Freezer, pids: Collection[int]) -> None:
        """Errors: RedirtyError, also when this kernel cannot let go by itself of what it holds."""
        self.require_own(pids)
        try:
            holding.hold_networks(sorted(pids), trial=True)
        except FreezeError as e:
            raise RedirtyError(
                f"the target's network cannot be held in a way that ends by itself: {e}; it needs nftables "
                "with tables that have an owner (Linux 5.12); leave --hold-network out"
            ) from None
