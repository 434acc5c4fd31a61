"""The guest's first file system: a static busybox, a few kernel modules, and guest-init.sh.

The archive format is cpio "newc", as the kernel's Documentation/driver-api/early-userspace/buffer-format.rst
describes it. It is written here, as it is simple and needs no tool.
"""

from __future__ import annotations

import lzma
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm.kernels import Kernel

# What the guest needs to reach the machine's files. Built-in ones are skipped.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
BUSYBOX = Path("/bin/busybox")
GUEST_INIT = Path(__file__).with_name("guest-init.sh")


class InitramfsError(RuntimeError):
    """The archive cannot be built; the message names what is missing."""


def build(
    kernel: Kernel, setup: str, *, modules: Sequence[str] = MODULES, init: Path = GUEST_INIT
) -> bytes:
    """Return the archive for `kernel`.

    Args:
        setup: shell code that `init` may read.
        modules: kernel modules that are included with everything they depend on.

    Raises: InitramfsError.
    """
    archive = _Archive()
    for directory in ("bin", "dev", "lower", "modules", "new", "proc", "sys", "upper"):
        archive.directory(directory)
    archive.file("bin/busybox", _busybox(), 0o755)
    archive.file("init", init.read_bytes(), 0o755)
    archive.file("setup.sh", setup.encode(), 0o644)
    for order, path in enumerate(module_files(kernel, modules)):
        name = path.name.split(".ko")[0]
        archive.file(f"modules/{order:02}-{name}.ko", _uncompressed(path), 0o644)
    return archive.finish()


def module_files(kernel: Kernel, modules: Sequence[str] = MODULES) -> list[Path]:
    """Return the files of `modules` and everything they depend on, in the order to load them.

    Raises: InitramfsError when the kernel does not have such a module.
    """
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[_module_name(path)] = (path, dependencies.split())
    builtin = {
        _module_name(line) for line in (kernel.modules / "modules.builtin").read_text().splitlines()
    }
    ordered: list[str] = []
    for name in modules:
        if name in builtin:
            continue
        if name not in needs:
            raise InitramfsError(f"kernel {kernel.release} has no module {name}")
        module, needed = needs[name]
        # modules.dep lists the dependency to load first last.
        for wanted in (*reversed(needed), module):
            if wanted not in ordered:
                ordered.append(wanted)
    return [kernel.modules / path for path in ordered]


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _uncompressed(path: Path) -> bytes:
    # busybox's insmod hands the file to the kernel unchanged, and not every kernel unpacks it.
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout
    return path.read_bytes()


def _busybox() -> bytes:
    try:
        program = BUSYBOX.read_bytes()
    except OSError as error:
        raise InitramfsError(f"no {BUSYBOX}: install the package busybox-static") from error
    # The loader's path is in the first page of a dynamic executable.
    if b"/ld-linux" in program[:4096]:
        raise InitramfsError(f"{BUSYBOX} needs libraries: install the package busybox-static")
    return program


class _Archive:
    """A cpio archive in memory."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0, b"")
        return bytes(self._data)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        # ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
