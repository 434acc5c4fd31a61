"""The search for code in a target, which may map any amount of anything."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redirty.collector.ptrace.helpers import code_search
from redirty.collector.ptrace.helpers.arch import architecture
from redirty.collector.ptrace.helpers.errors import TraceeError

MAPS_A_LOT = """
import ctypes, sys
libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
print(hex(libc.mmap(None, 1 << 44, 5, 0x4022, -1, 0)), flush=True)  # MAP_NORESERVE
sys.stdin.read()
"""


def test_everything_needed_is_in_the_c_library() -> None:
    arch = architecture()
    code = code_search.search(os.getpid(), arch)
    assert code.leads_back
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        assert code.still_there(memory.fileno(), arch)
        at = os.pread(memory.fileno(), 9, code.sigreturn)
        assert arch.sigreturn_code.match(at)
        assert os.pread(memory.fileno(), 3, code.call_return) == arch.call_return


def test_code_that_is_gone_is_noticed() -> None:
    arch = architecture()
    code = code_search.search(os.getpid(), arch)
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for name in ("call", "call_return", "sigreturn"):
            kept = getattr(code, name)
            setattr(code, name, 4096)  # nothing is mapped there
            assert not code.still_there(memory.fileno(), arch)
            setattr(code, name, kept)


def test_sixteen_tebibytes_of_executable_nothing_are_not_searched() -> None:
    arch = architecture()
    other = type(arch)(**{**arch.__dict__, "instruction": os.urandom(24)})
    with subprocess.Popen(
        [sys.executable, "-c", MAPS_A_LOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert int(program.stdout.readline(), 16) > 0
        before = resident_kib(program.pid)
        with pytest.raises(TraceeError, match="no system call instruction"):
            code_search.search(program.pid, other)
        read_kib = code_search._MAX_BYTES >> 10
        assert resident_kib(program.pid) - before <= 2 * read_kib


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_an_instruction_at_the_border_of_two_reads_is_found() -> None:
    arch = architecture()
    found = code_search.Code([])
    text = b"\x90" * (code_search._CHUNK_BYTES - 1)
    text += arch.call_return + b"\x90" * 64
    step = code_search._CHUNK_BYTES - code_search._OVERLAP_BYTES
    for at in range(0, len(text), step):
        found.add(0x1000 + at, text[at : at + code_search._CHUNK_BYTES], arch)
    assert found.call_return == 0x1000 + code_search._CHUNK_BYTES - 1


def test_likely_places_come_first() -> None:
    size = mmap.PAGESIZE
    anonymous, library = (0, size, "r-xp"), (0, 100 * size, "r-xp")
    order = [
        code_search.order((0, size, "r-xp"), b"[vdso]"),
        code_search.order(library, b"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
        code_search.order((0, 200 * size, "r-xp"), b"/lib/ld-musl-x86_64.so.1"),
        code_search.order((0, 300 * size, "r-xp"), b"/usr/lib/x86_64-linux-gnu/libc.so.6"),
        code_search.order(library, b"/usr/bin/program"),
        code_search.order(anonymous, b""),
    ]
    assert order == sorted(order)
