"""Policies of hypervisors: when QEMU and Cloud Hypervisor stop a guest.

Sources: QEMU 7.2 (migration/migration.c: migration_iteration_run, migration_update_counters,
migration_completion; migration/ram.c: ram_save_pending, save_zero_page_to_file; migration/multifd.h: MultiFDPacket_t);
Cloud Hypervisor (vmm/src/migration_transport.rs and vmm/src/lib.rs: the iterations of a live migration with
downtime_ms, timeout_s and timeout_strategy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from redirty.collector.model.policy import Again, Extras, PassSent, Remaining

QEMU_ZERO_PAGE_BYTES = 9  # an 8-byte header and the byte that is repeated
QEMU_PAGE_HEADER_BYTES = 8
QEMU_POLL_S = 0.1  # BUFFER_DELAY: how often its thread checks whether the rest fits the limit
# A packet has a header and the offsets of 128 pages, zero or not.
MULTIFD_PAGE_BYTES = (320 + 8 * 128) / 128
CLOUD_HYPERVISOR_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Hypervisor(Extras):
    """Base of the policies: sends every page that was written again, without a pause between passes. See Policy."""

    downtime_s: float
    zero_page_bytes: float | None = None
    header_bytes: float = 0.0
    endless: bool = True
    compares: bool = False
    boundary_s: float = 0.0
    stop_s: float = 0.0
    counts_stop: bool = False
    name: str = ""

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        return PassSent(left.bytes)


@dataclass(frozen=True)
class Qemu(Hypervisor):
    """QEMU: passes until the rest fits the downtime limit.

    Every 100 ms it compares the rest of the pass, in whole pages, with bandwidth x limit; once that fits, it
    adds what was written meanwhile, so a pass ends early.
    """

    zero_page_bytes: float | None = QEMU_ZERO_PAGE_BYTES
    header_bytes: float = QEMU_PAGE_HEADER_BYTES
    name: str = "qemu"

    def send(self, left: Remaining, bandwidth: float, again: Again) -> PassSent:
        """See Policy."""
        step = bandwidth * QEMU_POLL_S
        fits = left.of_the_last(bandwidth * self.downtime_s)
        # With exactly the limit pending it continues.
        steps = max(1.0, math.floor((left.bytes - fits) / step) + 1)
        return PassSent(min(left.bytes, steps * step))

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return left.pending_bytes < bandwidth * self.downtime_s or left.pending_bytes == 0


@dataclass(frozen=True)
class Postcopy(Hypervisor):
    """QEMU's post-copy, switched to after one pass: the guest runs at the other end while the rest is sent."""

    zero_page_bytes: float | None = QEMU_ZERO_PAGE_BYTES
    header_bytes: float = QEMU_PAGE_HEADER_BYTES
    endless: bool = False
    counts_stop: bool = True
    name: str = "qemu-postcopy"
    postcopy: bool = field(default=True, kw_only=True)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return True


@dataclass(frozen=True)
class CloudHypervisor(Hypervisor):
    """Cloud Hypervisor: passes until the rest fits downtime_ms at the bandwidth of the last one, or the timeout.

    It compares after each pass, and sends zero pages whole.
    """

    name: str = "cloud-hypervisor"
    timeout_s: float | None = field(default=CLOUD_HYPERVISOR_TIMEOUT_S, kw_only=True)

    def stop(self, number: int, left: Remaining, bandwidth: float) -> bool:
        """See Policy."""
        return left.pending_bytes <= bandwidth * self.downtime_s
