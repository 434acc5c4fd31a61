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
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.files import write_all
from redirty.collector.folders import Folder
from redirty.collector.mirror.image.core_reader import CoreFile, read_manifest
from redirty.collector.pageset import PAGE_SIZE

_COMMON, _INVENTORY, _PAGEMAP = 0x54564319, 0x58313116, 0x56084025
_IMAGES_VERSION = 2  # CRTOOLS_IMAGES_V1_1
_PRESENT = 1 << 2  # PE_PRESENT
_CHUNK = 1024  # pages
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


def export(directory: Path, to: Path) -> int:
    """Write the images of a mirror's processes to a new directory, and return their number of pages.

    Raises:
        RedirtyError: the directory is not a mirror, or the images cannot be written.
    """
    information = read_manifest(directory)
    folder = Folder.create(to)
    with contextlib.ExitStack() as stack:
        # A partial set could be mistaken for a complete one.
        stack.callback(_discard, folder)
        total = _export_into(folder, directory, information)
        folder.require_there()
        stack.pop_all()
    return total


def _discard(folder: Folder) -> None:
    with contextlib.suppress(OSError):
        folder.remove(*folder.names())
    folder.remove_itself()


def _export_into(to: Folder, directory: Path, information: dict[str, Any]) -> int:
    total = 0
    try:
        uptime_us = int(information["uptime_s"] * 1e6)
        fd = to.new_file("inventory.img")
        try:
            fields = message([(1, _IMAGES_VERSION), (2, 1), (8, uptime_us)])
            write_all(fd, [struct.pack("<I", _INVENTORY), fields])
        finally:
            os.close(fd)
        pids = information["target"]["ns_pids"]
        for number, (pid, name) in enumerate(zip(pids, information["cores"], strict=True), 1):
            core = CoreFile(directory / Path(name).name)
            try:
                total += _export_process(core, int(pid), number, to)
            finally:
                core.close()
    except OSError as e:
        raise RedirtyError(f"cannot write to {to.path}: {why(e)}") from None
    except (KeyError, ValueError, TypeError) as e:
        raise RedirtyError(f"{directory} is not a mirror that can be exported: {e}") from None
    return total


def _export_process(core: CoreFile, pid: int, number: int, to: Folder) -> int:
    """Write pagemap-PID.img, the list of the pages that pages-NUMBER.img contains one after the other."""
    maps, pages = to.new_file(f"pagemap-{pid}.img"), to.new_file(f"pages-{number}.img")
    total = 0
    try:
        write_all(maps, [struct.pack("<II", _COMMON, _PAGEMAP) + message([(1, number)])])
        for first, length in core.own.tolist():
            for at in range(first, first + length, _MAX_ENTRY_PAGES):
                count = min(_MAX_ENTRY_PAGES, first + length - at)
                write_all(maps, [message([(1, at * PAGE_SIZE), (2, count), (4, _PRESENT)])])
            for at in range(first, first + length, _CHUNK):
                write_all(pages, [core.read(at, min(_CHUNK, first + length - at))])
            total += length
    finally:
        os.close(maps)
        os.close(pages)
    return total
