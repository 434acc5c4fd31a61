"""The symbol reader: a process that reads the files of targets, and may crash, hang or be killed over them.

Started by foreign/symbols.py with the bare library. Requests and answers are JSON, a datagram each; it ends with the
other end of the socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from . import bounded
from .elf import ElfError, Image
from .perf_map import PerfMap
from .target_files import RegularFile, open_below, open_mapped

_MEMORY_BYTES = 1 << 30
_CPU_S = 30  # for one request
_REQUEST_BYTES = 1 << 16
_MAX_IMAGES, _MAX_PROCESSES = 256, 4096
_MAX_NAME = 512
_DEBUG = "usr/lib/debug/.build-id"


def demangler() -> Callable[..., Any] | None:
    """Return __cxa_demangle of the C++ library, if there is one."""
    try:
        function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    found: Callable[..., Any] = function
    return found


class Names:
    """Makes texts of the names in symbol tables."""

    def __init__(self) -> None:
        self._demangle = demangler()
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = [ctypes.c_void_p]

    def text(self, name: bytes) -> str:
        """Return a name as text, a C++ name as it was written in the source."""
        if name.startswith(b"_Z") and self._demangle is not None:
            made = self._demangle(name, None, None, None)
            if made:
                name = ctypes.string_at(made)
                self._free(made)
        return name[:_MAX_NAME].decode(errors="replace")


class Images:
    """The ELF files that were read, each once."""

    def __init__(self) -> None:
        self._known: dict[object, Image | None] = {}

    def of(self, file: RegularFile) -> Image | None:
        """Return the functions of a file; None if it is no ELF file."""
        if file.identity not in self._known:
            if len(self._known) >= _MAX_IMAGES:
                self._known.clear()
            self._known[file.identity] = _image(file)
        return self._known[file.identity]


def _image(file: RegularFile) -> Image | None:
    try:
        image = Image(file.read, file.size)
    except (ElfError, OSError, MemoryError):
        return None
    if image.stripped and re.fullmatch("[0-9a-f]{6,128}", image.build_id):
        with contextlib.suppress(ElfError, OSError, MemoryError):
            debug = open_below("/", f"{_DEBUG}/{image.build_id[:2]}/{image.build_id[2:]}.debug")
            try:
                if debug.owner == 0:
                    image.adopt(Image(debug.read, debug.size))
            finally:
                debug.close()
    return image


def own_vdso() -> Image | None:
    """Return the functions of the kernel's vdso, which is the same in every process."""
    lines = [line for line in _read("/proc/self/maps").split(b"\n") if line.endswith(b"[vdso]")]
    if not lines:
        return None
    region = Region(lines[0])
    content = ctypes.string_at(region.start, region.end - region.start)
    try:
        return Image(lambda at, size: content[at : at + size], len(content))
    except ElfError:
        return None


class Region:
    """A mapping of a target."""

    def __init__(self, line: bytes) -> None:
        bounds, _, offset, _, _, *path = line.split(None, 5)
        self.start, self.end = (int(n, 16) for n in bounds.split(b"-"))
        self.offset = int(offset, 16)
        self.path = os.fsdecode(path[0]) if path else ""


class Target:
    """Process whose functions are named.

    Raises:
        OSError: It is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        status = _read(f"/proc/{pid}/status").decode(errors="replace")
        uid = re.search(r"^Uid:\t\d+\t(\d+)", status, re.MULTILINE)
        inner = re.search(r"^NSpid:.*?(\d+)$", status, re.MULTILINE)
        owner = int(uid[1]) if uid else 0
        self.perf_map = PerfMap(pid, int(inner[1]) if inner else pid, owner)
        self._images: dict[tuple[int, int], Image | None] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the list of mappings again."""
        lines = _read(f"/proc/{self.pid}/maps").split(b"\n")
        self._regions = sorted((Region(line) for line in lines if line), key=lambda r: r.start)
        self._starts = [region.start for region in self._regions]

    def region(self, address: int) -> Region | None:
        """Return the mapping at an address."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self._regions[at].end:
            return self._regions[at]
        return None

    def image(self, region: Region, images: Images) -> Image | None:
        """Return the functions of a mapping's file; None if it is no ELF file that can be read."""
        key = region.start, region.end
        if key not in self._images:
            self._images[key] = None
            with contextlib.suppress(OSError):
                file = open_mapped(self.pid, region.start, region.end, region.path)
                try:
                    self._images[key] = images.of(file)
                finally:
                    file.close()
        return self._images[key]


class Reader:
    """Names addresses of targets."""

    def __init__(self) -> None:
        self._targets: dict[int, Target] = {}
        self._images = Images()
        self._names = Names()
        self._vdso = own_vdso()

    def names(self, pid: int, addresses: list[int], *, plain: bool) -> list[str]:
        """Return a name for each address.

        Args:
            pid: The process.
            addresses: Addresses in its code.
            plain: Open no file of the target: name the mapping and an offset in its file only.
        """
        try:
            target = self._target(pid)
            if any(target.region(address) is None for address in addresses):
                target.refresh()  # a library was loaded since
        except OSError:
            return ["[unknown]"] * len(addresses)
        return [self._name(target, address, plain=plain) for address in addresses]

    def _target(self, pid: int) -> Target:
        if pid not in self._targets:
            if len(self._targets) >= _MAX_PROCESSES:
                self._targets.clear()
            self._targets[pid] = Target(pid)
        return self._targets[pid]

    def _name(self, target: Target, address: int, *, plain: bool) -> str:
        region = target.region(address)
        if region is None:
            return "[unknown]"
        offset = address - region.start + region.offset
        module = region.path.rpartition("/")[2]
        if plain:
            return f"{module}+{offset:#x}" if region.path.startswith("/") else f"{address:#x}"
        image = None
        if region.path == "[vdso]":
            image = self._vdso
        elif region.path.startswith("/"):
            image = target.image(region, self._images)
        at = None if image is None else image.address_of(offset)
        name = b"" if image is None or at is None else image.name_at(at)
        name = name or target.perf_map.name_at(address)
        if name:
            return self._names.text(name)
        return f"[unknown] [{module}]" if region.path.startswith("/") else "[unknown]"


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _allow_cpu_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(used.ru_utime + used.ru_stime) + _CPU_S
    with contextlib.suppress(ValueError):  # the user's own limit is lower
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def main() -> None:
    """Answer requests until the other end is closed."""
    link = bounded.link(_MEMORY_BYTES)
    reader = Reader()
    while request := link.recv(_REQUEST_BYTES):
        pid, addresses, plain = json.loads(request)
        _allow_cpu_time()
        try:
            names = reader.names(pid, addresses, plain=plain)
        except MemoryError:
            os._exit(1)  # the other end goes on with a new process
        link.send(json.dumps(names).encode())
