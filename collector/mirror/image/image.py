"""A mirror's directory until its commit.

Contents are in one store for each source. The store of an address space becomes its core file: at the commit
the contents of the files that it maps are copied in, then the core header is written and the file renamed. The
directory becomes a mirror when mirror.json is renamed into place, and not before.
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
from redirty.collector.mirror.image.journal import MAX_SOURCES, Journal
from redirty.collector.mirror.image.page_store import MAX_WINDOWS, PageStore, StoreError
from redirty.collector.pageset import U64, runs_of

SPACE, FILE = "space", "file"


class Image:
    """The pages of a mirror that is not committed yet.

    Attributes:
        directory: the directory of the image.
        journal: records what a new receiver needs to resume.
        stores: pages by number of their source.
        kinds: SPACE or FILE, by number of the source.
        committed: whether the directory is a mirror.
        session: the sender's session, from the greeting.
        done: the last frame that is stored according to the journal.
    """

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.directory = directory
        self.journal = journal
        self.stores: dict[int, PageStore] = {}
        self.kinds: dict[int, str] = {}
        self.committed = False
        self.session = ""
        self.done = 0

    @classmethod
    def create(cls, directory: Path, session: str) -> Image:
        """Create an image in a new directory.

        Raises:
            RedirtyError: the directory exists, or cannot be created.
        """
        new_directory(directory)
        image = cls(directory, Journal.create(directory, session))
        image.session = session
        return image

    @classmethod
    def resume(cls, directory: Path) -> Image:
        """Open the image of a receiver that ended before the commit.

        Raises:
            RedirtyError: the journal or the pages cannot be used.
        """
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
            raise RedirtyError(
                f"cannot resume the mirror in {directory}: {why(e)}; remove it"
            ) from None
        return image

    def path_of(self, number: int) -> Path:
        """Return the path of a source's pages before the commit."""
        return self.directory / f".{number}.pages"

    def _open(self, number: int, kind: str, windows: dict[int, int], new: int = 0) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | new
        fd = os.open(self.path_of(number), flags, 0o600)
        self.stores[number] = PageStore(fd, elf_core.HEADER_BYTES if kind == SPACE else 0, windows)
        self.kinds[number] = kind

    def declare(self, number: int, kind: str) -> None:
        """Declare a source of pages.

        Raises:
            StoreError: too many sources, or an unknown kind.
            OSError: its file cannot be created.
        """
        if number in self.stores:
            return
        if kind not in (SPACE, FILE) or len(self.stores) >= MAX_SOURCES:
            raise StoreError("too many sources, or unknown source kind")
        self._open(number, kind, {}, os.O_CREAT)
        self.journal.source(number, kind)

    def write(self, number: int, firsts: U64, lengths: U64, data: memoryview) -> None:
        """Write the contents of runs of pages.

        Raises:
            StoreError: a page number is out of range, or there are too many windows.
            OSError: the disk is full, or fails.
        """
        store = self.stores[number]
        self.open_windows(number, store, firsts, lengths)
        store.write(firsts, lengths, data)

    def open_windows(self, number: int, store: PageStore, firsts: U64, lengths: U64) -> None:
        """Open the windows that runs of pages need.

        Raises:
            StoreError: a page number is out of range, or there are too many windows.
            OSError: the journal cannot be written.
        """
        new = store.new_windows(firsts, lengths)
        if new and sum(len(s.windows) for s in self.stores.values()) + len(new) > MAX_WINDOWS:
            raise StoreError(f"pages in more than {MAX_WINDOWS} GiB of addresses")
        for window in new:
            self.journal.window(number, window, store.open_window(window))

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """Make runs of pages zero.

        Raises:
            OSError: the disk fails.
        """
        self.stores[number].zero(firsts, lengths)

    def digest(self) -> str:
        """Return the digest of all contents, see digest.py."""

        def parts() -> Iterator[tuple[int, U64, Any]]:
            for number, store in sorted(self.stores.items()):

                def read(pages: U64, buffer: memoryview, store: PageStore = store) -> None:
                    store.read_into(*runs_of(pages), buffer)

                for window in sorted(store.filled):
                    yield number, store.filled_pages(window), read

        return digest_of(parts())

    def discard(self) -> None:
        """Remove everything that was written, and the directory if it is then empty."""
        names = [self.path_of(n) for n in self.kinds]
        self.close()
        self.journal.remove()
        with contextlib.suppress(OSError):
            manifest = self.directory / "mirror.json"  # first: without it the rest is not a mirror
            for path in [manifest, *names, *self.directory.glob("memory*.core")]:
                path.unlink(missing_ok=True)
            self.directory.rmdir()

    def close(self) -> None:
        """Close all files; the journal is kept until the commit."""
        for store in self.stores.values():
            store.close()
        self.stores = {}
        self.journal.close()
