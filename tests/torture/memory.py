"""A process's mappings, page-table state and contents, read independently of redirty."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import mapping_class

from tests.support.pagemap_oracle import Pagemap, frames_of, is_file, is_present, is_swapped

PAGE = 4096
U64 = npt.NDArray[np.uint64]
Contents = npt.NDArray[np.uint64]
"""(n, 512): pages."""

# /proc/kpageflags (Documentation/admin-guide/mm/pagemap.rst)
_ZERO_PAGE = np.uint64(1 << 24)
_KERNEL_PROVIDED = ("[vsyscall]", "[vvar]", "[vvar_vclock]", "[vdso]")
_IOV_MAX = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p, ctypes.c_ulong,
    ctypes.c_void_p, ctypes.c_ulong,
    ctypes.c_ulong,
]  # fmt: skip

Key = tuple[str, int]
"""Device and inode of the object of which a shared mapping shows a part."""


@dataclass(frozen=True)
class Vma:
    """A line of /proc/PID/maps. first, last: page numbers, last exclusive; offset: in pages."""

    first: int
    last: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        """True if writes may be visible to other processes."""
        return self.perms[3] == "s"

    @property
    def key(self) -> Key:
        """The object that a shared mapping shows."""
        return self.device, self.inode

    @property
    def mapping_class(self) -> str:
        """The mapping class, as redirty names it."""
        return mapping_class(self.perms, self.path)


def vmas(pid: int) -> list[Vma]:
    """Return the mappings of a process but for those that the kernel provides; [] when the process has ended."""
    found = []
    try:
        text = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return []
    for line in text.splitlines():
        bounds, perms, offset, device, inode, *rest = line.split(None, 5)
        path = rest[0] if rest else ""
        if path in _KERNEL_PROVIDED:
            continue
        first, last = (int(word, 16) // PAGE for word in bounds.split("-"))
        found.append(Vma(first, last, perms, int(offset, 16) // PAGE, device, int(inode), path))
    return found


class PageTables(Pagemap):
    """Page-table state of a process; leaving its `with` block closes it.

    Raises: OSError when the process has ended.
    """

    def populated(self, first: int, count: int, *, anonymous: bool) -> U64:
        """Return those of `count` pages from `first` on that are present or swapped out.

        anonymous: without a file's pages in private mappings.
        """
        entries = self.entries(first, count)
        found = is_present(entries) | is_swapped(entries)
        if anonymous:
            found &= ~is_file(entries)
        return np.flatnonzero(found).astype(np.uint64) + np.uint64(first)

    def is_zero(self, page: int) -> bool:
        """Return whether a page is one of the kernel's zero pages, which stand for memory never written."""
        (frame,) = frames_of(self.entries(page, 1))
        if not frame:
            return False
        with Path("/proc/kpageflags").open("rb", buffering=0) as flags:
            data = os.pread(flags.fileno(), 8, int(frame) * 8)
        return bool(np.frombuffer(data, np.uint64)[0] & _ZERO_PAGE)


def read_into(pid: int, pages: U64, addresses: U64) -> npt.NDArray[np.bool_]:
    """Copy pages of a process to addresses in this one, by process_vm_readv.

    Returns: (n,) which pages could be read; the others are unmapped, beyond a file's end, or their process has
    ended.
    """
    done = np.zeros(len(pages), np.bool_)
    size = np.full(len(pages), PAGE, np.uint64)
    remote = np.ascontiguousarray(np.stack([pages * np.uint64(PAGE), size], axis=1))
    local = np.ascontiguousarray(np.stack([addresses, size], axis=1))
    at = 0
    while at < len(pages):
        count = min(_IOV_MAX, len(pages) - at)
        got = _libc.process_vm_readv(
            pid, local.ctypes.data + 16 * at, count, remote.ctypes.data + 16 * at, count, 0
        )
        if got < 0:
            code = ctypes.get_errno()
            if code == errno.ESRCH:
                break
            if code != errno.EFAULT:
                raise OSError(code, os.strerror(code))
            at += 1  # this page is unreadable
            continue
        done[at : at + got // PAGE] = True
        at += got // PAGE
    return done


def contents(pid: int, pages: U64) -> tuple[Contents, npt.NDArray[np.bool_]]:
    """Return the contents of pages, and which of them could be read."""
    data = np.zeros((len(pages), PAGE // 8), np.uint64)
    addresses = np.uint64(data.ctypes.data) + np.arange(len(pages), dtype=np.uint64) * np.uint64(
        PAGE
    )
    return data, read_into(pid, pages, addresses)


def chunks(vma: Vma, most: int = 4096) -> Iterator[tuple[int, int]]:
    """Yield (first page, count) of a mapping's parts."""
    for first in range(vma.first, vma.last, most):
        yield first, min(most, vma.last - first)


def open_shared(pid: int, vma: Vma) -> Contents | None:
    """Map what a shared mapping shows, from its start; None when the mapping no longer exists.

    As long as it is open, no other inode gets its number.
    """
    name = f"/proc/{pid}/map_files/{vma.first * PAGE:x}-{vma.last * PAGE:x}"
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ESRCH):
            return None
        raise
    try:
        status = os.fstat(fd)
        if status.st_ino != vma.inode:
            return None
        size = status.st_size // PAGE * PAGE
        return np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), np.uint64).reshape(-1, 512)
    finally:
        os.close(fd)
