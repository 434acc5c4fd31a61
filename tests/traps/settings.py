"""Settings of the machine that a test changes and restores, and devices it lends to the kernel."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from redirty.collector.target.targets import parse_mounts

from tests.tiers import require, require_program
from tests.traps.common import not_applicable

_IMAGE_BYTES = 128 << 20


def current(path: Path) -> str:
    """Return the value of a settings file; of one that lists all choices, the one in brackets."""
    text = path.read_text().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


@contextlib.contextmanager
def setting(path: Path, value: object) -> Iterator[None]:
    """Write a setting, and restore the previous value at the end."""
    before = current(path)
    try:
        path.write_text(f"{value}\n")
    except OSError as e:
        not_applicable(f"the kernel refuses {value} in {path}: {e.strerror}")
    try:
        yield
    finally:
        path.write_text(f"{before}\n")


def _run(*words: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"needs '{words[0]}' to work here: {done.stderr.strip()}")
    return done.stdout.strip()


def program(name: str, package: str) -> str:
    """Return the path of an administrator's program, which need not be in the search path."""
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    return found or require_program(name, package)


@contextlib.contextmanager
def block_device(directory: Path) -> Iterator[Path]:
    """Attach a block device of 128 MiB, whose blocks are a file's."""
    losetup = program("losetup", "util-linux")
    if not Path("/dev/loop-control").exists():
        _run(program("modprobe", "kmod"), "loop")
    with tempfile.TemporaryDirectory(dir=directory, prefix="redirty-device-") as place:
        image = Path(place) / "image"
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        device = Path(_run(losetup, "--find", "--show", image))
        try:
            yield device
        finally:
            _run(losetup, "--detach", device)


@contextlib.contextmanager
def swap(directory: Path) -> Iterator[None]:
    """Add a swap area that is used up before any other."""
    if not Path("/proc/swaps").exists():
        not_applicable("the kernel was built without CONFIG_SWAP")
    with block_device(directory) as device:
        _run(program("mkswap", "util-linux"), device)
        _run(program("swapon", "mount"), "--priority", 32767, device)
        try:
            yield
        finally:
            _run(program("swapoff", "mount"), device)


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds a directory."""
    best = ("", "")
    for where, kind in parse_mounts(Path("/proc/self/mounts").read_bytes()):
        if directory.resolve().is_relative_to(where) and len(str(where)) >= len(best[0]):
            best = (str(where), kind)
    return best[1]


@contextlib.contextmanager
def on_disk(directory: Path) -> Iterator[Path]:
    """Yield a directory on a file system with direct I/O: below the given one, or on a device of its own."""
    if file_system(directory) not in ("tmpfs", "overlay", "9p"):
        yield directory
        return
    mkfs = program("mkfs.ext4", "e2fsprogs")
    with block_device(directory) as device:
        _run(mkfs, "-q", device)
        mount = directory / "disk"
        mount.mkdir()
        _run(program("mount", "mount"), device, mount)
        try:
            yield mount
        finally:
            _run(program("umount", "mount"), mount)
