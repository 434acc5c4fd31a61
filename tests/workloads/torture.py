"""Driver of torture: threads that write at random while their mappings change and children come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .pages import Area, areas_of
from .process import Answer, ProgramWithFiles


@dataclass(frozen=True)
class Rest:
    """State of the program while it rests. Counts are of the whole run so far; churn: how often each kind of
    change was made.
    """

    children: tuple[int, ...]
    writes: int
    reads: int
    child_writes: int
    churn: dict[str, int]
    areas: dict[str, Area]

    @classmethod
    def from_json(cls, answer: Answer) -> Self:
        """Build it from an answer."""
        return cls(
            tuple(answer["children"]),
            answer["writes"],
            answer["reads"],
            answer["child_writes"],
            answer["churn"],
            areas_of(answer),
        )


class Torture(ProgramWithFiles):
    """Drives torture, which rests until go().

    Args:
        mib: the size of most areas.
        kernel_writes: where process_vm_writev writes, too: 0 nowhere, 1 to private memory, 2 anywhere.
        huge: whether there are huge pages.
    """

    def __init__(
        self,
        seed: int,
        threads: int = 6,
        mib: int = 1,
        kernel_writes: int = 2,
        huge: bool = True,
        directory: Path | str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        words = [self.directory, threads, seed, mib, kernel_writes, int(huge)]
        self._start("torture", words, wrapper)

    def go(self) -> None:
        """Let it run."""
        self.command("go")

    def armed(self, pid: int) -> None:
        """Allow a child to write shared memory, too; a child that has ended since is ignored."""
        self.command("armed", pid)

    def rest(self) -> Rest:
        """Stop all writing, and wait for that."""
        return Rest.from_json(self.command("rest"))
