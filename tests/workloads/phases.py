"""Driver of phases: a program that touches memory only on command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .pages import Area, Pages, Touched, areas_of, expand
from .process import Answer, ProgramWithFiles

DEFAULT_AREAS: Mapping[str, tuple[str, int]] = {
    "anon": ("anon_private", 8),
    "shared": ("anon_shared", 8),
    "memfd": ("memfd", 8),
    "private_file": ("file_private", 8),
    "shared_file": ("file_shared", 8),
}
"""name: (kind, MiB): every mapping class once."""


class Phases(ProgramWithFiles):
    """Drives phases, which touches memory of every mapping class only on command. `areas` is kept current."""

    def __init__(
        self,
        areas: Mapping[str, tuple[str, int]] = DEFAULT_AREAS,
        threads: int = 2,
        directory: Path | str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        super().__init__(directory)
        wanted = [f"{name}:{kind}:{mib}" for name, (kind, mib) in areas.items()]
        self._start("phases", [self.directory, threads, *wanted], wrapper)
        self.areas = areas_of(self.greeting)
        self.tids: list[int] = self.greeting["tids"]

    def _touch(self, verb: str, area: str, *words: object) -> Touched:
        return Touched.from_json(self.areas[area], self.command(verb, area, *words))

    def write(
        self, area: str, pattern: str = "all", seed: int = 1, count: int = 0, threads: int = 1
    ) -> Touched:
        """Write a new non-zero value to each page of the pattern.

        pattern: all, stride:N, range:FIRST, random or collide[:PATTERN]. A count of 0 means all that the pattern has.
        """
        return self._touch("write", area, pattern, seed, count, threads)

    def read(
        self, area: str, pattern: str = "all", seed: int = 1, count: int = 0, threads: int = 1
    ) -> Touched:
        """Read a word of each page and write nothing."""
        return self._touch("read", area, pattern, seed, count, threads)

    def kread(
        self,
        area: str,
        pattern: str = "all",
        seed: int = 1,
        count: int = 0,
        threads: int = 1,
        direct: bool = False,
    ) -> Touched:
        """Have the kernel fill the pages: read(2) from a file, with O_DIRECT when `direct`."""
        return self._touch(
            "kread", area, pattern, seed, count, threads, "direct" if direct else "plain"
        )

    def transient(self, area: str, first: int, count: int) -> Touched:
        """Write each page by a thread of its own that starts for it and ends."""
        return self._touch("transient", area, first, count)

    def advise(self, area: str, advice: str, first: int = 0, count: int = 0) -> Pages:
        """Call madvise: dontneed, free, remove, hugepage, nohugepage, collapse, pageout, mergeable, unmergeable."""
        return self._touch("advise", area, advice, first, count).pages

    def dontneed(self, area: str, first: int = 0, count: int = 0) -> Pages:
        """Drop these pages; a count of 0 means up to the area's end."""
        return self._touch("dontneed", area, first, count).pages

    def mprotect(self, area: str, writable: bool, first: int = 0, count: int = 0) -> Pages:
        """Make these pages read-only or writable again."""
        return self._touch("mprotect", area, "rw" if writable else "ro", first, count).pages

    def msync(self, area: str) -> None:
        """Have the whole area written back, and wait for it."""
        self.command("msync", area)

    def _mapped(self, *words: object) -> Area:
        area = Area.from_json(self.command(*words)["area"])
        self.areas[area.name] = area
        return area

    def mapnew(self, name: str, kind: str, mib: int, address: int = 0) -> Area:
        """Map another area: of a kind of DEFAULT_AREAS, `thp` or `hugetlb`; at an exact address, if given."""
        return self._mapped("mapnew", name, kind, mib, address)

    def alias(self, name: str, of: str) -> Area:
        """Map the pages of a shared area a second time."""
        return self._mapped("alias", name, of)

    def remap(self, name: str, mib: int = 0, skew_pages: int = 0) -> Area:
        """Move an area by mremap, to a new size if given; its offset within 2 MiB changes by skew_pages."""
        return self._mapped("remap", name, mib, skew_pages)

    def unmap(self, name: str) -> Area:
        """Unmap an area; return where it was."""
        self.command("unmap", name)
        return self.areas.pop(name)

    def grow(self, what: str, pages: int) -> Pages:
        """Grow the heap or the main thread's stack and write the new pages, up to 1024."""
        answer = self.command("grow", what, pages)
        return expand([[answer["first_page"], answer["last_page"]]])

    def digests(self) -> dict[str, int]:
        """Return a digest of each area's contents, as pages.digest() makes it. Reads, and so populates, every page."""
        return {name: int(value, 16) for name, value in self.command("digest")["digests"].items()}

    def digest(self, area: str) -> int:
        """Return the digest of one area's contents."""
        return int(self.command("digest", area)["digests"][area], 16)

    def fork(self) -> int:
        """Fork a child that waits for commands; return its PID. One at a time."""
        pid: int = self.command("fork")["child"]
        return pid

    def child(self, *words: object) -> Answer:
        """Have the child run any command of this program, with one thread: child("digest"), child("exit")."""
        return self.command("child", *words)

    def child_write(
        self, area: str, pattern: str = "all", seed: int = 1, count: int = 0
    ) -> Touched:
        """Have the child write; valid as long as the area is where it was when the child was forked."""
        return Touched.from_json(self.areas[area], self.child("write", area, pattern, seed, count))

    def child_exit(self) -> None:
        """End the child and have it reaped."""
        self.child("exit")
