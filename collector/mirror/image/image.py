"""A mirror's directory while it is made, and its commit: memory.core and mirror.json, or nothing.

Contents lie in one store for each source. An address space's store becomes its core file: at the commit
the contents of files that it maps are copied in, then its head is written, and it gets its name. The
directory is a mirror from the moment at which mirror.json has its name, and not before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.files import new_directory
from redirty.collector.mirror.image import elf_core
from redirty.collector.mirror.image.digest import digest_of
from redirty.collector.mirror.image.journal import Journal
from redirty.collector.mirror.image.page_store import MOST_WINDOWS, PageStore, StoreError
from redirty.collector.pageset import U64, runs_of

SPACE, FILE = "space", "file"
MOST_SOURCES = 1 << 16


class Image:
    """Where a receiver puts what it is told. directory: it must not be there yet, or be one that
    Image.resume() can take up."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.directory = directory
        self.journal = journal
        self.stores: dict[int, PageStore] = {}
        self.kinds: dict[int, str] = {}
        self.committed = False
        self.session = ""
        self.done = 0  # the last frame that is in it, as far as the journal says

    @classmethod
    def create(cls, directory: Path, session: str) -> Image:
        """A new one. Errors: RedirtyError."""
        new_directory(directory)
        image = cls(directory, Journal.create(directory, session))
        image.session = session
        return image

    @classmethod
    def resume(cls, directory: Path) -> Image:
        """One whose receiver ended before the commit. Errors: RedirtyError."""
        journal, found = Journal.open(directory)
        image = cls(directory, journal)
        image.done = found.done
        image.session = found.session
        try:
            for number, kind in found.sources.items():
                image._open(number, kind, found.windows.get(number, {}))
                image.stores[number].find_filled()
        except OSError as e:
            image.close()
            raise RedirtyError(f"cannot go on with the mirror in {directory}: {why(e)}") from None
        return image

    def path_of(self, number: int) -> Path:
        """A source's pages, until the commit."""
        return self.directory / f".{number}.pages"

    def _open(self, number: int, kind: str, windows: dict[int, int], new: int = 0) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | new
        fd = os.open(self.path_of(number), flags, 0o600)
        self.stores[number] = PageStore(fd, elf_core.HEADER_BYTES if kind == SPACE else 0, windows)
        self.kinds[number] = kind

    def declare(self, number: int, kind: str) -> None:
        """A source from which pages will come. Errors: StoreError, OSError."""
        if number in self.stores:
            return
        if kind not in (SPACE, FILE) or len(self.stores) >= MOST_SOURCES:
            raise StoreError("too many sources, or one of no kind")
        self._open(number, kind, {}, os.O_CREAT)
        self.journal.source(number, kind)

    def write(self, number: int, firsts: U64, lengths: U64, data: memoryview) -> None:
        """Contents of runs of pages. Errors: StoreError, OSError (a full disk)."""
        store = self.stores[number]
        self.make_room(number, store, firsts, lengths)
        store.write(firsts, lengths, data)

    def make_room(self, number: int, store: PageStore, firsts: U64, lengths: U64) -> None:
        """Opens the windows that runs of pages need. Errors: StoreError, OSError."""
        for window in store.new_windows(firsts, lengths):
            if sum(len(s.windows) for s in self.stores.values()) >= MOST_WINDOWS:
                raise StoreError(f"pages in more than {MOST_WINDOWS} GiB of addresses")
            self.journal.window(number, window, store.open_window(window))

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """Runs of pages are zero now, or not there. Errors: StoreError, OSError."""
        self.stores[number].zero(firsts, lengths)

    def digest(self) -> str:
        """See digest.py."""

        def parts() -> Iterator[tuple[int, U64, Any]]:
            for number, store in sorted(self.stores.items()):

                def read(pages: U64, buffer: memoryview, store: PageStore = store) -> None:
                    store.read_into(*runs_of(pages), buffer)

                for window in sorted(store.filled):
                    yield number, store.filled_pages(window), read

        return digest_of(parts())

    def discard(self) -> None:
        """There will be no mirror: what was written goes, and the directory when nothing else is in it."""
        names = [self.path_of(n) for n in self.kinds]
        self.close()
        self.journal.remove()
        with contextlib.suppress(OSError):
            told = self.directory / "mirror.json"  # first: without it what is left is no mirror
            for path in [told, *names, *self.directory.glob("memory*.core")]:
                path.unlink(missing_ok=True)
            self.directory.rmdir()

    def close(self) -> None:
        """Lets go of all files; the journal stays until the commit."""
        for store in self.stores.values():
            store.close()
        self.stores = {}
        self.journal.close()
