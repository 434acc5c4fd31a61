"""A virtual machine seen from its host: the guest's memory, without the hypervisor's own."""

from __future__ import annotations

from redirty.collector.errors import RedirtyError
from redirty.collector.linux.maps import Mapping, Mappings, MapsFile, appeared
from redirty.collector.linux.process import Process
from redirty.collector.target.qemu import MIN_BLOCK_BYTES, ram_mappings


class Guest:
    """The memory of a QEMU guest, emulated or with KVM. pid: QEMU's."""

    follow_fork = False
    may_join = False
    required = True
    partial = True
    kind = "vm"

    def __init__(self, pid: int) -> None:
        Process(pid).close()
        self.pid = pid
        self.description = f"virtual machine of process {pid}"
        self._blocks: list[tuple[int, int]] = []
        self._known = self._part = Mappings.of(())
        maps = MapsFile(pid)
        try:
            mappings = maps.read()
        finally:
            maps.close()
        if mappings is None or not self.part(mappings).items:
            raise RedirtyError(
                f"process {pid} has no memory marked as a guest's, as QEMU marks it (MADV_DONTFORK): "
                f"trace the whole process with -p {pid}"
            )

    @property
    def pids(self) -> tuple[int, ...]:
        """See TargetSet."""
        return (self.pid,)

    def arguments(self) -> tuple[str, ...]:
        """See TargetSet."""
        return "--vm", str(self.pid)

    def members(self) -> list[int]:
        """Return QEMU's PID; see TargetSet."""
        return [self.pid]

    def part(self, mappings: Mappings) -> Mappings:
        """Return the guest's memory, including what was plugged in later; see TargetSet."""
        if mappings is not self._known:
            fresh = appeared(self._known, mappings).items
            if any(m.end - m.start >= MIN_BLOCK_BYTES for m in fresh):
                starts = {start for start, _ in ram_mappings(self.pid)}
                self._blocks = [(m.start, m.end) for m in mappings.items if m.start in starts]
            chosen = tuple(m for m in mappings.items if self._has(m))
            if chosen != self._part.items:
                self._part = Mappings.of(chosen)
            self._known = mappings
        return self._part

    def _has(self, mapping: Mapping) -> bool:
        return any(a <= mapping.start and mapping.end <= b for a, b in self._blocks)
