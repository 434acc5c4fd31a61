"""The programs that run in the guests: known-rate writers of four kinds, and a redis under load."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.workloads.driver import expected_distinct, guest_parameters, make_initramfs

PAGE_BYTES = 4096
# QEMU's migration stream has 8 bytes before each page (migration/ram.c, save_page_header).
SENT_PAGE_BYTES = PAGE_BYTES + 8
REDIS_INIT = Path(__file__).with_name("redis-init.sh")
REDIS_PROGRAMS = ("redis-server", "redis-cli")


class WorkloadMissingError(RuntimeError):
    """A program for the guest is not on this machine; the message names it."""


@dataclass(frozen=True)
class Workload:
    """A guest's program.

    Attributes:
        append: its part of the kernel's command line.
        initramfs: writes the guest's file system to a path.
        distinct: W(t), from seconds to pages, where it is known.
    """

    name: str
    memory_mib: int
    append: str
    initramfs: Callable[[Path], Path]
    distinct: Callable[[float], float] | None = None


def critical_bandwidth(distinct: Callable[[float], float], downtime_s: float) -> float:
    """Return the bytes per second above which passes become shorter until one fits the downtime.

    A pass of t seconds leaves W(t). W(t)/t only falls as t grows, so passes shrink towards the t at which W(t) takes t
    to send, and that t is no longer than the downtime when W(downtime) fits it.
    """
    return distinct(downtime_s) * SENT_PAGE_BYTES / downtime_s


def writer(pattern: str, rate: int, mib: int, memory_mib: int = 256) -> Workload:
    """Return a guest whose one program writes `rate` pages a second over `mib` of memory."""
    pages = (mib << 20) // PAGE_BYTES
    return Workload(
        pattern,
        memory_mib,
        guest_parameters(rate, mib, pattern=pattern),
        make_initramfs,
        lambda seconds: expected_distinct(pattern, rate, pages, seconds),
    )


def redis() -> Workload:
    """Return a redis-server of 50,000 keys, and a client that sets them at random, some 800 a second."""
    return Workload("redis", 384, "", redis_initramfs)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "cyclic": lambda: writer("cyclic", 8_000, 64),
    "uniform": lambda: writer("uniform", 10_000, 64),
    "hot_cold": lambda: writer("hot_cold", 16_000, 96),
    "bursty": lambda: writer("bursty", 8_000, 64),
    "redis": redis,
}


def redis_initramfs(path: Path) -> Path:
    """Write redis's programs with their libraries, and busybox for the script that starts them.

    Raises: WorkloadMissingError.
    """
    files = {"bin/busybox": _program("busybox")}
    for name in REDIS_PROGRAMS:
        program = _program(name)
        files[f"bin/{name}"] = program
        for library in libraries(_listed(program)):
            files[str(library).lstrip("/")] = library
    return make_initramfs(path, REDIS_INIT, files)


def libraries(listed: str) -> list[Path]:
    """Return the files that ldd lists: the libraries, and the loader."""
    return [Path(name) for name in re.findall(r"(?:=> |^\s)(/\S+) \(0x", listed, re.MULTILINE)]


def _program(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise WorkloadMissingError(
            f"{name} is not installed (make bench-migration installs what it needs)"
        )
    return Path(path)


def _listed(program: Path) -> str:
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkloadMissingError(f"{program} can't be taken along: {done.stderr.strip()}")
    return done.stdout
