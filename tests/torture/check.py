"""Byte-for-byte comparison of the mirror with the memory, while the target is idle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.torture.memory import PAGE, U64, PageTables, Vma, chunks, contents, vmas
from tests.torture.mirror import NEVER, Copy, Mirror, Shadow


@dataclass(frozen=True)
class Loss:
    """A page whose copy differs from the memory.

    Attributes:
        last_dirty: the last round that reported it dirty; None if no round ever did.
        area: the workload's name for it, where it has one.
    """

    pid: int
    address: int
    mapping_class: str
    path: str
    last_dirty: int | None
    was_copied: bool
    area: str = ""

    def __str__(self) -> str:
        last = "never" if self.last_dirty is None else f"last in round {self.last_dirty}"
        copied = "" if self.was_copied else ", never copied"
        name = self.area or self.path or "(anonymous)"
        return (
            f"process {self.pid}, address {self.address:#x}, {self.mapping_class}, {name}: "
            f"reported dirty {last}{copied}"
        )


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison. pages: the number of pages compared."""

    pages: int
    losses: tuple[Loss, ...]


def compare(mirror: Mirror) -> Comparison:
    """Compare every readable page of every address space.

    Of private mappings only anonymous pages are compared: the kernel itself says that the others are zero, or
    what the file has.
    """
    pages, losses = 0, []
    for copy in mirror.spaces.values():
        with PageTables(copy.pid) as tables:
            for vma in vmas(copy.pid):
                for first, count in chunks(vma):
                    if vma.shared:
                        part = np.arange(first, first + count, dtype=np.uint64)
                    else:
                        part = tables.populated(first, count, anonymous=True)
                    if len(part):
                        compared, found = _compare(mirror, copy, vma, part, tables)
                        pages += compared
                        losses += found
    return Comparison(pages, tuple(losses))


def _compare(
    mirror: Mirror, copy: Copy, vma: Vma, pages: U64, tables: PageTables
) -> tuple[int, list[Loss]]:
    actual, readable = contents(copy.pid, pages)
    if vma.shared:
        # Never seen: its contents are unknown, and count as zero.
        _, shadow = mirror.shared.get(vma.key, (None, Shadow()))
        data, have, last = shadow.copies(pages - np.uint64(vma.first) + np.uint64(vma.offset))
    else:
        data, have, last = copy.shadow.copies(pages)
    wrong = np.flatnonzero(readable & (actual != data).any(axis=1)).tolist()
    if not vma.shared:
        wrong = [i for i in wrong if not tables.is_zero(int(pages[i]))]
    found = [
        Loss(
            copy.pid,
            int(pages[i]) * PAGE,
            vma.mapping_class,
            vma.path,
            None if last[i] == NEVER else int(last[i]),
            bool(have[i]),
        )
        for i in wrong
    ]
    return int(readable.sum()), found
