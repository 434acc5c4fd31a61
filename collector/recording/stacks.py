"""stacks.folded: folded stacks, weighted by the pages they dirtied; stacks.csv: the same by stack_id.

With the latter, events can be attributed to stacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    """Resolver of function names, which arrive some time after they are requested."""

    def request(self, pid: int, addresses: Sequence[int]) -> None:
        """Request the names of the functions at addresses of a process."""

    def poll(self) -> None:
        """Take the names that have arrived."""

    def name(self, pid: int, address: int) -> str:
        """Return the name of the function at an address of a process, as far as it is known."""

    def finish(self) -> None:
        """Wait for the names that were requested."""

    def hurry(self) -> None:
        """Let finish() wait a moment only."""

    def close(self) -> None:
        """Release what names are read with."""


def folded_stack(comm: str, pid: int, addresses: Sequence[int], namer: Namer) -> str:
    """Format a stack as 'comm;outermost;...;innermost'.

    comm: name of the process; empty when unknown. addresses: the innermost first; empty when unknown.
    """
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
        self._stacks: dict[tuple[int, int], tuple[str, Sequence[int]]] = {}  # comm, addresses
        self._pages: Counter[tuple[int, int]] = Counter()

    def poll(self) -> None:
        """Read the counts of the kernel side since the last call."""
        for space, stack, pages in self._source.take_stacks():
            key = (space, stack)
            if key not in self._stacks:
                pid = abi.tgid_of(space)
                addresses = [] if stack < 0 else self._source.stack(stack)
                self._stacks[key] = self._comms.get(pid, ""), addresses
                self._namer.request(pid, addresses)
            self._pages[key] += pages
        self._namer.poll()

    def hurry(self) -> None:
        """Let close() not wait for names."""
        self._namer.hurry()

    def close(self) -> None:
        """Write the files. Raises: RedirtyError when that fails."""
        self.poll()
        self._namer.finish()
        self._namer.close()
        folded: Counter[str] = Counter()
        rows: list[tuple[object, ...]] = [columns.STACKS]
        for (space, stack), pages in self._pages.most_common():
            pid = abi.tgid_of(space)
            comm, addresses = self._stacks[space, stack]
            text = folded_stack(comm, pid, addresses, self._namer)
            folded[text] += pages
            rows.append((pid, stack if stack >= 0 else None, pages, text))
        lines = [f"{text} {pages}\n" for text, pages in folded.most_common()]
        errors = files.FirstError()
        with errors.caught():
            files.replace(self._folder, "stacks.folded", ["".join(lines).encode()])
        with errors.caught():
            files.replace(self._folder, "stacks.csv", [files.csv_bytes(rows)])
        errors.raise_first()
