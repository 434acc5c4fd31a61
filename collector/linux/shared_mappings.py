"""Files and memory behind mappings: which of them are the same, and which ones processes share.

Device and inode as /proc/PID/maps shows them do not identify a file: two files of an overlay, of subvolumes of
btrfs or of a FUSE server may show the same pair. So it is asked of the opened file, through /proc/PID/map_files:
the device and inode of statx(2), which differ for layers and subvolumes, and the file's handle, which is the file
system's own name for it. Sources: proc_pid_map_files(5), name_to_handle_at(2), ipc/shm.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.linux import procfs
from redirty.collector.linux.maps import SYSTEM_V_PATH, bounds_of, split_line

Shown = tuple[str, int, int]
"""Device, inode, and for System V memory its namespace: there the inode is just the segment's
number, and each namespace counts from 0. Mappings that differ in it show different memory; those that
do not may."""


class Identity(NamedTuple):
    """Tells files and pieces of memory apart: mappings show the same one if theirs are equal.

    Attributes:
        device: As statx(2) shows it; as maps does ("major:minor") if the file cannot be asked.
        inode: Its number.
        namespace: The IPC namespace, for System V memory.
        handle: What the file system itself calls the file; empty if it has no such name.
    """

    device: int | str
    inode: int
    namespace: int
    handle: bytes = b""


# One inode stands for all of the first kind, which are rings of a process's own; of the files in
# /dev only these are memory.
_NOT_MEMORY, _DEVICES = "anon_inode:", "/dev/"
_MEMORY_IN_DEV = ("/dev/shm/", "/dev/hugepages/", "/dev/dax", "/dev/zero (deleted)")

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_SYMLINK_FOLLOW, _AT_HANDLE_FID = -100, 0x400, 0x200
# Without asking the server of a FUSE or network file system, which may be silent.
_AT_STATX_DONT_SYNC, _STATX_SIZE = 0x4000, 256
_STATX_MASK = 0x1 | 0x100 | 0x200 | 0x400  # type, inode, size, blocks
_MODE = struct.Struct("H")  # stx_mode
_FILE = struct.Struct("QQQ")  # stx_ino, stx_size, stx_blocks
_DEVICE = struct.Struct("II")  # stx_dev_major, stx_dev_minor
_MAX_HANDLE = 128  # MAX_HANDLE_SZ
_HANDLE = struct.Struct("Ii")  # length, type


def map_file(tid: int, start: int, end: int) -> str:
    """Return the path by which the file behind a mapping is asked and opened; tid: a living thread."""
    return f"/proc/{tid}/map_files/{start:x}-{end:x}"


def identity(path: str, namespace: int = 0) -> Identity:
    """Identify a file, which is not opened and whose contents are not read.

    Args:
        path: Its path, such as map_file().
        namespace: The number of the process's IPC namespace for System V memory, else 0.

    Raises:
        OSError: There is no such mapping (any more), or it may not be examined.
    """
    name = os.fsencode(path)
    answer = _statx(name)
    inode, _, _ = _FILE.unpack_from(answer, 32)
    device = os.makedev(*_DEVICE.unpack_from(answer, 136))
    return Identity(device, inode, namespace, _handle(name))


class FileSize(NamedTuple):
    """The size of a file.

    Attributes:
        memory: Whether it holds data that can be mapped: a device does not, nor does a ring of the kernel.
        size: In bytes.
        allocated: Bytes that are no holes, at most.
    """

    memory: bool
    size: int
    allocated: int


def file_size(path: str) -> FileSize:
    """Return the size of a file, which is not opened; path: such as map_file().

    Raises:
        OSError: As in identity().
    """
    answer = _statx(os.fsencode(path))
    (mode,) = _MODE.unpack_from(answer, 28)
    _, size, blocks = _FILE.unpack_from(answer, 32)
    return FileSize(stat.S_ISREG(mode), size, blocks * 512)


def _statx(name: bytes) -> ctypes.Array[ctypes.c_char]:
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(_AT_FDCWD, name, _AT_STATX_DONT_SYNC, _STATX_MASK, answer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(name))
    return answer


def _handle(name: bytes) -> bytes:
    """Return the handle of a file with its type; empty if its file system has none."""
    buffer = ctypes.create_string_buffer(_HANDLE.size + _MAX_HANDLE)
    mount = ctypes.c_int()
    # From 6.5 on any file system names its files this way, before only those that NFS can export.
    for flags in (_AT_SYMLINK_FOLLOW | _AT_HANDLE_FID, _AT_SYMLINK_FOLLOW):
        _HANDLE.pack_into(buffer, 0, _MAX_HANDLE, 0)
        if not _libc.name_to_handle_at(_AT_FDCWD, name, buffer, ctypes.byref(mount), flags):
            length, _ = _HANDLE.unpack_from(buffer)
            return buffer.raw[4 : _HANDLE.size + length]
        code = ctypes.get_errno()
        if code in RESOURCE_ERRNOS:
            raise OSError(code, os.strerror(code))
        if code not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EOVERFLOW):
            break
    return b""


@dataclass(frozen=True)
class SharedObject:
    """A piece of shared memory, as one process maps it."""

    path: str
    writable: bool


class SharedMapping(NamedTuple):
    """A shared mapping. shown: as maps tells it apart from others; start, end: its addresses."""

    shown: Shown
    start: int
    end: int
    object: SharedObject


def parse(text: bytes, namespace: int) -> Iterable[SharedMapping]:
    """Yield the shared mappings in lines of a maps file.

    Args:
        text: Whole lines.
        namespace: Number of the process's IPC namespace, for System V memory.
    """
    for line in text.split(b"\n"):
        if b"s " not in line:
            continue  # fast path: most mappings are private
        fields = split_line(line)
        path = fields.path.decode(errors="replace")
        if fields.perms[3:4] != b"s" or not path or path.startswith(_NOT_MEMORY):
            continue
        if path.startswith(_DEVICES) and not path.startswith(_MEMORY_IN_DEV):
            continue
        number = namespace if path.startswith(SYSTEM_V_PATH) else 0
        shown = fields.device.decode(), int(fields.inode), number
        object_ = SharedObject(path, fields.perms[1:2] == b"w")
        yield SharedMapping(shown, *bounds_of(fields.bounds), object_)


def shared_mappings(pid: int) -> list[SharedMapping]:
    """Return the shared mappings of a process; none if it is gone.

    Raises:
        PermissionError: The process may not be examined.
        OSError: This process has no file descriptors or memory left.
    """
    found: list[SharedMapping] = []
    directory = procfs.directory(pid)
    try:
        namespace = os.stat(f"{directory}/ns/ipc").st_ino  # noqa: PTH116 - many of them, kept bare
        fd = os.open(f"{directory}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return found
    try:
        # Piece by piece, since a list may have 60,000 lines; the kernel mostly gives whole ones.
        rest = b""
        while part := os.read(fd, 1 << 16):
            head, newline, tail = (rest + part).rpartition(b"\n")
            if b"s " in head:
                found += parse(head, namespace)
            rest = tail if newline else rest + part
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
    return found


def identified(pid: int, mappings: Iterable[SharedMapping]) -> dict[Identity, SharedObject]:
    """Return the memory behind some mappings of a process.

    Raises:
        OSError: This process has no file descriptors or memory left.
    """
    found: dict[Identity, SharedObject] = {}
    tid = 0
    for mapping in mappings:
        tid = tid or procfs.living_thread(pid)
        try:
            key = identity(map_file(tid, mapping.start, mapping.end), mapping.shown[2])
        except (FileNotFoundError, ProcessLookupError):
            continue  # unmapped since the list was read
        except PermissionError:  # without CAP_CHECKPOINT_RESTORE
            key = Identity(*mapping.shown)
        old = found.get(key)
        if old is None or (mapping.object.writable and not old.writable):
            found[key] = mapping.object  # mapped twice, it is writable if either mapping is
    return found
