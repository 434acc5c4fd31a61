"""Processes that share an address space, by kcmp(2)."""

from __future__ import annotations

import ctypes
import os

from redirty.collector.linux import procfs

_NUMBERS = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1  # include/uapi/linux/kcmp.h


def sharing_memory(pid: int) -> list[int]:
    """Return the other processes that run in the address space of this one (CLONE_VM, vfork).

    Empty if the kernel does not support kcmp.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        return []
    tid = procfs.living_thread(pid)  # a thread that ended has no memory, like all others that did
    return [
        other
        for other in procfs.pids()
        if other != pid
        and libc.syscall(number, tid, procfs.living_thread(other), _KCMP_VM, 0, 0) == 0
    ]
