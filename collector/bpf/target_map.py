"""Targets as the BPF side knows them: processes, and the ranges of memory that are recorded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, syscalls
from redirty.collector.errors import RedirtyError, why

_OUR_CHANGES = 1 << 62  # the kernel side counts its own from 1


class TargetMap:
    """The processes that are traced: a hash map, and copies of its entries (events.h: rd_config.near)."""

    def __init__(
        self, fd: int, max_targets: int, config: npt.NDArray[np.void], *, cached: bool
    ) -> None:
        """Take over the map's descriptor; config: (1,) abi.CONFIG.

        cached: whether the kernel side counts its changes, so that an unchanged map need not be read.
        """
        self._fd = fd
        self._max_targets = max_targets
        self._config = config
        self._cached = cached
        self._changes = 0
        self._known: tuple[int, int, dict[int, tuple[int, int]]] | None = None
        self._reader = syscalls.HashReader(
            fd, np.empty(max_targets, np.uint32), np.empty(max_targets, abi.TARGET)
        )

    def set(self, tgid: int, space: int, slot: int) -> None:
        """Trace a process from now on, or give it another slot.

        Raises:
            RedirtyError: There is no room for one more.
        """
        self._invalidate(tgid)  # before the entry, or a fault in between would be ignored
        value = np.array([(space, slot)], abi.TARGET)
        try:
            syscalls.map_update(self._fd, np.array([tgid], np.uint32), value)
        except OSError as e:
            raise RedirtyError(
                f"cannot trace more than {self._max_targets} processes: {why(e)}"
            ) from None
        self._invalidate(tgid)  # after it, or the kernel side's copy of the old one would stay

    def drop(self, tgid: int) -> None:
        """Stop tracing a process."""
        syscalls.map_delete(self._fd, np.array([tgid], np.uint32))
        self._invalidate(tgid)

    def _invalidate(self, tgid: int) -> None:
        """Make the kernel side look a process up again."""
        self._changes += 1
        self._config["near"][0, tgid % abi.NEAR] = _OUR_CHANGES | self._changes

    def space_of(self, tgid: int) -> int | None:
        """Return the address space of a process; None if it is not a target."""
        value = np.zeros(1, abi.TARGET)
        found = syscalls.map_lookup(self._fd, np.array([tgid], np.uint32), value)
        return int(value["space"][0]) if found else None

    def all(self) -> dict[int, tuple[int, int]]:
        """Return all processes traced now, forked ones included: tgid -> (space, slot)."""
        # Reading the whole map takes 100 us, possibly while a target is stopped. Whoever changes it
        # counts up afterwards.
        changes = int(self._config["changes"][0])
        known = self._known
        if known is None or known[:2] != (changes, self._changes) or not self._cached:
            tgids, values = self._reader.read()
            rows = zip(tgids.tolist(), values.tolist(), strict=True)
            found = {tgid: (space, slot) for tgid, (space, slot) in rows}
            known = self._known = changes, self._changes, found
        return known[2].copy()


class RangeFilter:
    """The ranges of memory to which recording is limited, with Options.part."""

    def __init__(self, config: npt.NDArray[np.void]) -> None:
        """Use the (1,) abi.CONFIG."""
        self._config = config

    def add(self, ranges: list[tuple[int, int]]) -> None:
        """Add address ranges, [start, end), to those whose writes are recorded.

        Raises:
            RedirtyError: There are too many.
        """
        count = int(self._config["chosen_count"][0])
        known = {tuple(row) for row in self._config["chosen"][0][:count].tolist()}
        for bounds in ranges:
            if bounds in known:
                continue
            if count == abi.CHOSEN:
                raise RedirtyError(
                    f"the target has more than {abi.CHOSEN} separate pieces of memory, too many to "
                    "record them alone: trace the whole process (-p)"
                )
            self._config["chosen"][0][count] = bounds
            count += 1
            self._config["chosen_count"] = count  # after the entry that it counts
