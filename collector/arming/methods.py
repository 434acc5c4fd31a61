"""Arming methods of this machine, each tried by a round trip on a page of a child process.

clear_refs can accept the command and do nothing (a kernel without CONFIG_MEM_SOFT_DIRTY), so only
writing a page and scanning for it shows whether a method works.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import numpy as np
from redirty.collector.arming.base import Armed, Part, whole
from redirty.collector.arming.soft_dirty import SoftDirtyArmed
from redirty.collector.arming.uffd import UffdArmed
from redirty.collector.errors import ArmError, GoneError, RedirtyError, why
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import MapsFile
from redirty.collector.linux.open_files import open_files
from redirty.collector.pageset import PAGE_SHIFT, U64, from_pages
from redirty.collector.ptrace.injector_client import Injector

METHODS = ("uffd", "soft-dirty")
"""In order of preference: reading and clearing in one step comes first."""

SOFT_DIRTY_NOTE = (
    "armed by soft-dirty bits, which are cleared: an incremental dump of the target by something else (CRIU's "
    "pre-dumps) is wrong from now on, until its next full one"
)

# Four pages, all written; then one more write to a page for each line of input.
_CHILD = """
import ctypes, mmap, sys
m = mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(4): m[i * 4096] = 1
print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)
for line in sys.stdin:
    m[int(line) * 4096] = 2
    print("written", flush=True)
"""


def open_armed(
    method: str,
    pid: int,
    injector: Injector,
    stop_timeout_s: float = 2.0,
    part: Part = whole,
) -> Armed:
    """Prepare a process for arming.

    Args:
        method: One of METHODS.
        pid: The process.
        injector: Stops the process, where the method needs that.
        stop_timeout_s: How long to wait for the stop.
        part: Selects the mappings that matter.

    Raises:
        ArmError: The process cannot be armed; code ETIMEDOUT: it did not stop in time.
        GoneError: The process is gone.
    """
    if method == "soft-dirty":
        return SoftDirtyArmed(pid, part)
    _require_no_userfaultfd(pid)
    descriptor, stopped_s = injector.userfaultfd(pid, stop_timeout_s)
    return UffdArmed(pid, descriptor, stopped_s)


def _require_no_userfaultfd(pid: int) -> None:
    """Check that a process does not handle page faults itself.

    What it registers while it is armed would be refused (EBUSY), and with it a post-copy migration, a
    restore with lazy pages or a garbage collection.

    Raises:
        ArmError: It has a userfaultfd.
    """
    for number, opened in open_files(pid).items():
        if opened == "anon_inode:[userfaultfd]":
            raise ArmError(
                f"cannot arm process {pid} with userfaultfd: it has one itself (descriptor {number}), which "
                "could register no memory meanwhile; end that, or use --arm soft-dirty on a kernel that has it",
                errno.EBUSY,
            )


def round_trip(method: str, injector: Injector) -> str | None:
    """Try a method: arm, write page 2 of 4, scan. Return None if it works, else the reason."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin and child.stdout
    maps = armed = None
    try:
        first = int(child.stdout.readline()) >> PAGE_SHIFT
        maps = MapsFile(child.pid)
        mappings = maps.read()
        if mappings is None:
            return "the process used for the test ended"
        if method == "uffd" and not pm.scan_supported():
            return "the kernel has no PAGEMAP_SCAN (needs Linux 6.7)"
        armed = open_armed(method, child.pid, injector)
        armed.arm(mappings)
        child.stdin.write("2\n")
        child.stdin.flush()
        child.stdout.readline()
        candidates = armed.arm(mappings)
        written, _ = armed.resolve(candidates, mappings)
        four = from_pages(_page_range(first, 4))
        if written & four == from_pages(_page_range(first + 2, 1)):
            return None
        if method == "soft-dirty":
            return (
                "the kernel accepts clear_refs but marks no page: it was built without "
                "CONFIG_MEM_SOFT_DIRTY"
            )
        return "a page written after arming was not found again"
    except ArmError as e:
        return str(e)
    except GoneError:
        return "the process used for the test ended"
    except OSError as e:
        return why(e)
    finally:
        if armed is not None:
            armed.close()
        if maps is not None:
            maps.close()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()


def _page_range(first: int, count: int) -> U64:
    return np.arange(first, first + count, dtype=np.uint64)


def choose(requested: str, injector: Injector) -> str:
    """Return the arming method to use: the requested one, or with "auto" the first that works.

    Raises:
        RedirtyError: None works; the message has every reason.
    """
    reasons = {}
    for method in METHODS if requested == "auto" else (requested,):
        reason = round_trip(method, injector)
        if reason is None:
            return method
        reasons[method] = reason
    text = "; ".join(f"{method}: {reason}" for method, reason in reasons.items())
    raise RedirtyError(f"cannot arm memory on this kernel: {text} (see: redirty check)")
