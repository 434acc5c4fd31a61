"""Exports a mirror as CRIU page images, which `criu dump --track-mem --prev-images-dir` accepts as a parent.

Sources: criu/include/magic.h, images/pagemap.proto, images/inventory.proto, criu/image.c (CRIU 3.17). An image
is a magic number, followed by protocol buffers messages, each preceded by its size.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder
from redirty.collector.mirror.image.committed import Field, each_once, processes, read_manifest
from redirty.collector.mirror.image.core_reader import CoreFile
from redirty.collector.pageset import PAGE_SIZE

_COMMON, _INVENTORY, _PAGEMAP = 0x54564319, 0x58313116, 0x56084025
_IMAGES_VERSION = 2  # CRTOOLS_IMAGES_V1_1
_PRESENT = 1 << 2  # PE_PRESENT
_MAX_ENTRY_PAGES = 1 << 19


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def message(fields: Iterable[tuple[int, int]]) -> bytes:
    """Encode a message of varint fields (number, value), preceded by its size."""
    body = b"".join(_varint(number << 3) + _varint(value) for number, value in fields)
    return struct.pack("<I", len(body)) + body


def _write(fd: int, data: bytes, at: int = 0) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at, view = at + done, view[done:]


def export(directory: Path, to: Path) -> int:
    """Write the images of a mirror's processes to a new directory, and return their number of pages.

    Raises:
        RedirtyError: the directory is not a mirror, or the images cannot be written.
    """
    information = read_manifest(directory)
    try:
        uptime_us = int(Field(information, "")["uptime_s"].seconds() * 1e6)
        found = processes(information, "ns_pids")
        each_once([pid for pid, _ in found], "a process")
    except ValueError as e:
        raise RedirtyError(f"{directory} is not a mirror that can be exported: {e}") from None
    folder = Folder.create(to)
    with contextlib.ExitStack() as stack:
        # A partial set could be mistaken for a complete one.
        stack.callback(_discard, folder)
        total = _export_into(folder, directory, uptime_us, found)
        folder.require_there()
        folder.give_to_caller()
        stack.pop_all()
    return total


def _discard(folder: Folder) -> None:
    with contextlib.suppress(OSError):
        folder.remove(*folder.names())
    folder.remove_itself()


def _export_into(to: Folder, directory: Path, uptime_us: int, found: list[tuple[int, str]]) -> int:
    """Write all images. found: (process ID, name of the core file) of each process."""
    total = 0
    try:
        fd = to.new_file("inventory.img")
        try:
            fields = message([(1, _IMAGES_VERSION), (2, 1), (8, uptime_us)])
            _write(fd, struct.pack("<I", _INVENTORY) + fields)
        finally:
            os.close(fd)
        for number, (pid, name) in enumerate(found, 1):
            core = CoreFile(directory / name)
            try:
                total += _export_process(core, pid, number, to)
            finally:
                core.close()
    except OSError as e:
        raise RedirtyError(f"cannot write to {to.path}: {why(e)}") from None
    return total


def _export_process(core: CoreFile, pid: int, number: int, to: Folder) -> int:
    """Write pagemap-PID.img, the list of the pages that pages-NUMBER.img contains one after the other.

    Pages that are zero become holes.
    """
    total = 0
    with os.fdopen(to.new_file(f"pagemap-{pid}.img"), "wb") as maps:
        maps.write(struct.pack("<II", _COMMON, _PAGEMAP) + message([(1, number)]))
        for first, length in core.own.tolist():
            for at in range(first, first + length, _MAX_ENTRY_PAGES):
                count = min(_MAX_ENTRY_PAGES, first + length - at)
                maps.write(message([(1, at * PAGE_SIZE), (2, count), (4, _PRESENT)]))
    pages = to.new_file(f"pages-{number}.img")
    try:
        for first, length in core.own.tolist():
            for page, data in core.data(first, length):
                _write(pages, data, (total + page - first) * PAGE_SIZE)
            total += length
        os.ftruncate(pages, total * PAGE_SIZE)
    finally:
        os.close(pages)
    return total
