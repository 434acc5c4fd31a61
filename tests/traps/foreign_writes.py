"""Writes into the memory of another process: process_vm_writev, /proc/PID/mem, ptrace."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tests.workloads.pages import PAGE_BYTES, Pages

_ATTACH, _DETACH, _POKEDATA = 16, 17, 5
_WALL = 0x40000000


class _Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _addresses(pages: Pages) -> list[int]:
    """Return the address of each page."""
    return [int(page) * PAGE_BYTES for page in pages]


def write_into(pid: int, pages: Pages) -> None:
    """Write whole pages by process_vm_writev."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_writev.restype = ctypes.c_ssize_t
    content = ctypes.create_string_buffer(b"\x5a" * PAGE_BYTES, PAGE_BYTES)
    for address in _addresses(pages):
        local = _Span(ctypes.addressof(content), PAGE_BYTES)
        remote = _Span(address, PAGE_BYTES)
        done = libc.process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        assert done == PAGE_BYTES, os.strerror(ctypes.get_errno())


def write_memory_file(pid: int, pages: Pages) -> None:
    """Write a word of each page through /proc/PID/mem, which can also write to read-only memory."""
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for address in _addresses(pages):
            assert os.pwrite(memory.fileno(), b"\xa5" * 8, address + 64) == 8


def poke(pid: int, pages: Pages) -> None:
    """Attach as a debugger does, and write a word of each page by PTRACE_POKEDATA."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int, address: int = 0, data: int = 0) -> None:
        done = libc.ptrace(request, pid, address, data)
        assert done == 0, os.strerror(ctypes.get_errno())

    ptrace(_ATTACH)
    try:
        os.waitpid(pid, _WALL)
        for address in _addresses(pages):
            ptrace(_POKEDATA, address + 128, 0x5AA5_0FF0_1234)
    finally:
        ptrace(_DETACH)
