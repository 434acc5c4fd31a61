"""stacks.folded: who dirties the pages, as folded stacks weighted by pages. stacks.csv: the same by
stack_id, so that events can be told by stack."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from redirty.collector import files
from redirty.collector.bpf import abi
from redirty.collector.errors import one_line
from redirty.collector.recording import columns


class StackSource(Protocol):
    """Of the tracer: counts by stack since the last call, and a stack's addresses."""

    def take_stacks(self) -> list[tuple[int, int, int]]:
        """(address space, stack, pages) each."""

    def stack(self, stack_id: int) -> list[int]:
        """Addresses, the writing instruction first."""


class Namer(Protocol):
    """Names of functions."""

    def name(self, pid: int, address: int) -> str:
        """The function at an address of a process."""


class StackFile:
    """Adds up pages by stack; names are looked up while the process lives."""

    def __init__(
        self, directory: Path, source: StackSource, namer: Namer, names: dict[int, str]
    ) -> None:
        self._path = directory / "stacks.folded"
        self._table = directory / "stacks.csv"
        self._source = source
        self._namer = namer
        self._comms = names
        self._folded: dict[tuple[int, int], str] = {}
        self._pages: Counter[tuple[int, int]] = Counter()

    def poll(self) -> None:
        """Takes what the kernel counted since the last call."""
        for space, stack, pages in self._source.take_stacks():
            key = (space, stack)
            if key not in self._folded:
                self._folded[key] = self._fold(abi.tgid_of(space), stack)
            self._pages[key] += pages

    def _fold(self, pid: int, stack: int) -> str:
        names = [self._comms.get(pid) or f"pid {pid}"]
        addresses = [] if stack < 0 else self._source.stack(stack)
        names += [self._namer.name(pid, a) for a in reversed(addresses)] or ["[stack unknown]"]
        # A name may hold the format's own separators.
        return ";".join(one_line(name).replace(";", ":") for name in names)

    def close(self) -> None:
        """Writes the files. Errors: RedirtyError."""
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
            files.replace(self._path, ["".join(lines).encode()])
        with errors.caught():
            files.replace(self._table, [files.csv_bytes(rows)])
        errors.raise_first()
