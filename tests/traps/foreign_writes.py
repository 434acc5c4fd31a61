"""Ways to write into the memory of another process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tests.support.stepped_rounds import bytes_of
from tests.workloads.pages import PAGE_BYTES, Pages

_ATTACH, _DETACH, _POKEDATA = 16, 17, 5
_WALL = 0x40000000


class _Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write_into(pid: int, pages: Pages) -> None:
    """Writes whole pages, by process_vm_writev."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_writev.restype = ctypes.c_ssize_t
    content = ctypes.create_string_buffer(b"\x5a" * PAGE_BYTES, PAGE_BYTES)
    for address, length in bytes_of(pages):
        ours = _Span(ctypes.addressof(content), length)
        theirs = _Span(address, length)
        done = libc.process_vm_writev(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
        assert done == length, os.strerror(ctypes.get_errno())


def write_memory_file(pid: int, pages: Pages) -> None:
    """Writes a word of each page through /proc/PID/mem, which may write to read-only memory too."""
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for address, _ in bytes_of(pages):
            assert os.pwrite(memory.fileno(), b"\xa5" * 8, address + 64) == 8


def poke(pid: int, pages: Pages) -> None:
    """Writes a word of each page as a debugger does: attached, by PTRACE_POKEDATA."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int, address: int = 0, data: int = 0) -> None:
        done = libc.ptrace(request, pid, address, data)
        assert done == 0, os.strerror(ctypes.get_errno())

    ptrace(_ATTACH)
    try:
        os.waitpid(pid, _WALL)
        for address, _ in bytes_of(pages):
            ptrace(_POKEDATA, address + 128, 0x5AA5_0FF0_1234)
    finally:
        ptrace(_DETACH)
