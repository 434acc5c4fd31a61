"""Drivers of uring, sharers and churn, each for one trap."""

from __future__ import annotations

from pathlib import Path

from .pages import Pages, Touched, areas_of
from .process import Program

SLOT_PAGES = 4


class Uring(Program):
    """Has the kernel write into its area `a` through io_uring. why: the error that refused it, or ""."""

    def __init__(self, directory: Path) -> None:
        super().__init__("uring", [directory])
        self.areas = areas_of(self.greeting)
        self.why: str = self.greeting["why"]

    def read(self, first: int, count: int, how: str = "plain") -> Pages:
        """Read a file into pages: plain, async (by a worker of the kernel) or fixed (registered)."""
        return self._touched("read", first, count, how)

    def write(self, first: int, count: int) -> Pages:
        """Write pages without the kernel."""
        return self._touched("write", first, count)

    def register(self, first: int, count: int) -> Pages:
        """Register pages as a buffer: the kernel pins them."""
        return self._touched("register", first, count)

    def unregister(self) -> None:
        """Release the registered buffer."""
        self.command("unregister")

    def _touched(self, *words: object) -> Pages:
        return Touched.from_json(self.areas["a"], self.command(*words)).pages


class Sharers(Program):
    """Lends its memory to children and threads."""

    def __init__(self) -> None:
        super().__init__("sharers")
        self.areas = areas_of(self.greeting)

    def run(self, how: str, first: int, count: int) -> tuple[Pages, int]:
        """Have pages of `a` written by vfork, exec, clone or threads; return the pages, and by whom."""
        answer = self.command(how, first, count)
        return Touched.from_json(self.areas["a"], answer).pages, int(answer["child"])


class Churn(Program):
    """Writes first pages of slots of `a` while its mappings change all around them."""

    def __init__(self, slots: int) -> None:
        super().__init__("churn", [slots])
        self.area = areas_of(self.greeting)["a"]
        self.stable = self.area.pages[: slots * SLOT_PAGES : SLOT_PAGES]

    def write(self, seed: int, count: int) -> Pages:
        """Write `count` random first pages."""
        return Touched.from_json(self.area, self.command("write", seed, count)).pages

    def start(self) -> None:
        """Start changing the mappings."""
        self.command("start")

    def stop(self) -> int:
        """Stop changing the mappings; return how often they changed."""
        return int(self.command("stop")["changes"])
