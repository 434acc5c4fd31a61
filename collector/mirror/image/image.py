"""A mirror's directory until its commit.

Contents are in one store for each source. The store of an address space becomes its core file: at the commit
the contents of the files that it maps are copied in, then the core header is written and the file renamed. The
directory becomes a mirror when mirror.json is renamed into place, and not before.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder
from redirty.collector.mirror.image import elf_core
from redirty.collector.mirror.image.digest import digest_of, hash_digest_of
from redirty.collector.mirror.image.journal import MAX_SOURCES, Journal
from redirty.collector.mirror.image.page_store import MAX_WINDOWS, PageStore, StoreError
from redirty.collector.pageset import U64, runs_of

SPACE, FILE = "space", "file"


class Image:
    """The pages of a mirror that is not committed yet.

    Attributes:
        folder: the directory of the image.
        journal: records what a new receiver needs to resume.
        stores: pages by number of their source.
        kinds: SPACE or FILE, by number of the source.
        committed: whether the directory is a mirror.
        session: the sender's session, from the greeting.
        done: the last frame that is stored according to the journal.
    """

    def __init__(self, folder: Folder, journal: Journal) -> None:
        self.folder = folder
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
        folder = Folder.create(directory)
        image = cls(folder, Journal.create(folder, session))
        image.session = session
        return image

    @classmethod
    def resume(cls, folder: Folder) -> Image:
        """Open the image of a receiver that ended before the commit.

        Args:
            folder: a directory that belongs to this process's user, and is writable by no other.

        Raises:
            RedirtyError: the journal or the pages cannot be used.
        """
        journal, found = Journal.open(folder)
        image = cls(folder, journal)
        image.done = found.done
        image.session = found.session
        try:
            for number, kind in found.sources.items():
                fd = folder.open_file(image.name_of(number), os.O_RDWR)
                image._add(number, kind, fd, found.windows.get(number, {}))
                image.stores[number].find_filled()
        except RedirtyError:
            image.close()
            raise
        except OSError as e:
            image.close()
            raise RedirtyError(
                f"cannot resume the mirror in {folder.path}: {why(e)}; remove it"
            ) from None
        return image

    @property
    def directory(self) -> Path:
        """The path of the directory, for messages."""
        return self.folder.path

    def name_of(self, number: int) -> str:
        """Return the name of the file with a source's pages before the commit."""
        return f".{number}.pages"

    def _add(self, number: int, kind: str, fd: int, windows: dict[int, int]) -> None:
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
        self._add(number, kind, self.folder.new_file(self.name_of(number), os.O_RDWR), {})
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

    def digest(self, seed: int | None = None) -> str:
        """Return the digest of all contents, or with a seed that of the hashes of all pages; see digest.py.

        Raises:
            OSError: the disk fails.
        """
        return digest_of(self._parts()) if seed is None else hash_digest_of(self._parts(), seed)

    def _parts(self) -> Iterator[tuple[int, U64, Any]]:
        for number, store in sorted(self.stores.items()):

            def read(pages: U64, buffer: memoryview, store: PageStore = store) -> None:
                store.read_into(*runs_of(pages), buffer)

            for window in sorted(store.filled):
                yield number, store.filled_pages(window), read

    def discard(self) -> None:
        """Remove everything that was written, and the directory if it is then empty."""
        names = [self.name_of(n) for n in self.kinds]
        self.close()
        self.journal.remove()
        with contextlib.suppress(OSError):
            names += fnmatch.filter(self.folder.names(), "memory*.core")
        self.folder.remove("mirror.json", *names)  # it first: without it the rest is not a mirror
        self.folder.remove_itself()

    def close(self) -> None:
        """Close all files; the journal is kept until the commit."""
        for store in self.stores.values():
            store.close()
        self.stores = {}
        self.journal.close()
