"""A virtual machine seen from its host: the guest's memory, without the hypervisor's own."""

from __future__ import annotations

from redirty.collector.errors import RedirtyError
from redirty.collector.linux.maps import Mapping, Mappings, MapsFile, appeared
from redirty.collector.linux.process import Process
from redirty.collector.linux.smaps import starts_with_flag

# QEMU keeps a guest's memory from its children (MADV_DONTFORK, softmmu/physmem.c: ram_block_add),
# every block of it that a migration copies, and nothing else.
_FLAG = b"dc"
_BLOCK_BYTES = 1 << 20  # no block that is plugged in later is smaller


class Guest:
    """The memory of a guest of QEMU, emulated or with KVM. pid: QEMU's."""

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
        self._seen = self._part = Mappings.of(())
        maps = MapsFile(pid)
        try:
            mappings = maps.read()
        finally:
            maps.close()
        if mappings is None or not self.part(mappings).items:
            raise RedirtyError(
                f"no memory of process {pid} is marked as a guest's, as QEMU does (MADV_DONTFORK): "
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
        """See TargetSet."""
        return [self.pid]

    def part(self, mappings: Mappings) -> Mappings:
        """See TargetSet: the guest's memory, that which is plugged in later included."""
        if mappings is not self._seen:
            fresh = appeared(self._seen, mappings).items
            if any(m.end - m.start >= _BLOCK_BYTES for m in fresh):
                starts = starts_with_flag(self.pid, _FLAG)
                self._blocks = [(m.start, m.end) for m in mappings.items if m.start in starts]
            chosen = tuple(m for m in mappings.items if self._has(m))
            if chosen != self._part.items:
                self._part = Mappings.of(chosen)
            self._seen = mappings
        return self._part

    def _has(self, mapping: Mapping) -> bool:
        return any(a <= mapping.start and mapping.end <= b for a, b in self._blocks)
