"""An initramfs for a test guest: the statically built writer as /init, or other programs."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .process import WorkloadError, build


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """Return a file in the cpio format `newc` (the kernel's Documentation/driver-api/early-userspace/buffer-format)."""
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # The kernel reads ino only where a file has several links: none here has.
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (0, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    return _pad(header + path) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def make_initramfs(
    path: Path | str, init: Path | None = None, files: Mapping[str, Path] | None = None
) -> Path:
    """Write an uncompressed initramfs whose /init is the writer (or another static program, or a script).

    files: more files, by their paths in it, with no leading slash.
    """
    program = init or build() / "init"
    if not program.exists():
        raise WorkloadError(f"{program} is not built: sanitizers cannot be linked statically")
    programs = {name: file.read_bytes() for name, file in (files or {}).items()}
    programs["init"] = program.read_bytes()
    folders = {str(parent) for name in programs for parent in PurePosixPath(name).parents}
    folders = folders - {"."} | {"dev", "proc"}
    archive = [
        *(_entry(folder, stat.S_IFDIR | 0o755) for folder in sorted(folders)),
        # The kernel opens it for process 1 before any program could create it.
        _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        *(_entry(name, stat.S_IFREG | 0o755, data) for name, data in programs.items()),
        _entry("TRAILER!!!", 0),
    ]
    target = Path(path)
    target.write_bytes(b"".join(archive))
    return target


def guest_parameters(rate: int, mib: int, seconds: int = 0, pattern: str = "cyclic") -> str:
    """Return the guest writer's part of the kernel command line; rate in pages/s, 0 seconds means for ever."""
    return f"redirty.rate={rate} redirty.mib={mib} redirty.secs={seconds} redirty.pattern={pattern}"
