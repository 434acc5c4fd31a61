"""Holds a target's outgoing network traffic while it is stopped, unless that would affect others."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

from redirty.collector.errors import RedirtyError
from redirty.collector.linux.netns import name_of, networks_of, others_in
from redirty.collector.ptrace.freezer_client import FreezeError, Freezer


@dataclass(frozen=True)
class NetworkHold:
    """A request to hold the traffic of the target's network namespaces.

    Attributes:
        shared: allow namespaces that processes outside the target use too.
        remote: the mirror itself is sent over a network.
    """

    shared: bool = False
    remote: bool = False

    def require_own(self, pids: Collection[int]) -> None:
        """Check that only the target would be held.

        Raises:
            RedirtyError: redirty itself would be held, or other processes and `shared` is not set.
        """
        networks = set().union(*map(networks_of, pids))
        if self.remote and networks_of(os.getpid()) & networks:
            raise RedirtyError(
                "cannot hold the target's network: redirty is in the same network namespace, and would cut itself "
                "off from the receiver; omit --hold-network, or mirror to a directory"
            )
        others = [] if self.shared else others_in(networks, pids)
        if others:
            more = f" and {len(others) - 1} more, which are" if len(others) > 1 else ", which is"
            raise RedirtyError(
                f"cannot hold the target's network: {name_of(others[0])}{more} not in the target, but in the same "
                "network namespace; --hold-network=shared holds that traffic too"
            )

    def require_possible(self, freezer: Freezer, pids: Collection[int]) -> None:
        """Check the same, and that this kernel can hold traffic with a table that it removes if redirty dies.

        Raises:
            RedirtyError: it cannot, or require_own() fails.
        """
        self.require_own(pids)
        try:
            freezer.hold_networks(sorted(pids), trial=True)
        except FreezeError as e:
            raise RedirtyError(
                f"cannot hold the target's network safely: {e}; this needs nftables tables with an owner, which "
                "the kernel removes with redirty (Linux 5.12); omit --hold-network"
            ) from None
