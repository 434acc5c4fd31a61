"""Driver of crowd: a process with very many threads or mappings, or very much reserved memory."""

from __future__ import annotations

from collections.abc import Sequence

from .pages import Touched, areas_of
from .process import Program


class Crowd(Program):
    """Drives crowd. what: threads, mappings or sparse; amount: how many, or how many GiB."""

    def __init__(self, what: str, amount: int, wrapper: Sequence[str] = ()) -> None:
        super().__init__("crowd", [what, amount], wrapper=wrapper)
        self.areas = areas_of(self.greeting)

    def write(self, area: str, seed: int, count: int) -> Touched:
        """Write up to `count` pages at random; in mode `threads`, each by the thread of its number."""
        answer = self.command("write", area, seed, count)
        return Touched.from_json(self.areas[area], answer)

    def join(self, area: str, page: int) -> None:
        """Make a read-only page of `mappings` writable: three mappings become one."""
        self.command("join", area, page)

    def cut(self, area: str, page: int) -> None:
        """Make the page read-only again: one mapping becomes three."""
        self.command("cut", area, page)
