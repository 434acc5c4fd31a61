"""stacks.folded: folded stacks, weighted by the pages they dirtied; stacks.csv: the same by stack_id.

With the latter, events can be attributed to stacks.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from redirty.collector import files
from redirty.collector.bpf import abi
from redirty.collector.errors import one_line
from redirty.collector.folders import Folder
from redirty.collector.recording import columns


class StackSource(Protocol):
    """The part of the tracer that counts by stack."""

    def take_stacks(self) -> list[tuple[int, int, int]]:
        """Return (address space, stack, pages) counted since the last call."""

    def stack(self, stack_id: int) -> list[int]:
        """Return the addresses of a stack, the writing instruction first."""


class Namer(Protocol):
    """Resolver of function names."""

    def name(self, pid: int, address: int) -> str:
        """Return the name of the function at an address of a process."""


def folded_stack(comm: str, pid: int, stack_id: int, source: StackSource, namer: Namer) -> str:
    """Format a stack as 'comm;outermost;...;innermost'.

    comm: name of the process; empty when unknown. stack_id: negative when there is none.
    """
    addresses = [] if stack_id < 0 else source.stack(stack_id)
    names = [namer.name(pid, address) for address in reversed(addresses)] or ["[stack unknown]"]
    # A name may contain the separators of the format.
    return ";".join(one_line(name).replace(";", ":") for name in (comm or f"pid {pid}", *names))


class StackFile:
    """Sums pages by stack; function names are resolved while the process lives."""

    def __init__(
        self, folder: Folder, source: StackSource, namer: Namer, names: dict[int, str]
    ) -> None:
        self._folder = folder
        self._source = source
        self._namer = namer
        self._comms = names
        self._folded: dict[tuple[int, int], str] = {}
        self._pages: Counter[tuple[int, int]] = Counter()

    def poll(self) -> None:
        """Read the counts of the kernel side since the last call."""
        for space, stack, pages in self._source.take_stacks():
            key = (space, stack)
            if key not in self._folded:
                pid = abi.tgid_of(space)
                self._folded[key] = folded_stack(
                    self._comms.get(pid, ""), pid, stack, self._source, self._namer
                )
            self._pages[key] += pages

    def close(self) -> None:
        """Write the files. Raises: RedirtyError when that fails."""
        self.poll()
        folded: Counter[str] = Counter()
        rows: list[tuple[object, ...]] = [columns.STACKS]
        for (space, stack), pages in self._pages.most_common():
            text = self._folded[space, stack]
            folded[text] += pages
            rows.append((abi.tgid_of(space), stack if stack >= 0 else None, pages, text))
        lines = [f"{text} {pages}\n" for text, pages in folded.most_common()]
        errors = files.FirstError()
        with errors.caught():
            files.replace(self._folder, "stacks.folded", ["".join(lines).encode()])
        with errors.caught():
            files.replace(self._folder, "stacks.csv", [files.csv_bytes(rows)])
        errors.raise_first()
