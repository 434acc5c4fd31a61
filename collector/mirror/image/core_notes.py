"""The notes of a core file: what a debugger asks of a process beside its memory.

Sources: include/uapi/linux/elf.h, elfcore.h; fs/binfmt_elf.c; core(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from redirty.collector.mirror.sources.vmas import Vma
from redirty.collector.pageset import PageSet, page_runs
from redirty.collector.ptrace.freezer_client import ThreadState

_PRSTATUS, _PRFPREG, _PRPSINFO, _AUXV, _FILE = 1, 2, 3, 6, 0x46494C45
_X86_XSTATE = 0x202
# a number of our own: readers that go by it alone must not take it for registers
OWN_NAME, OWN_PAGES = b"REDIRTY", 0x52445459
"""The note that says which pages are the process's own: runs, (first page, how many), of 64 bits each."""
_PAGE = 4096
# the part of struct elf_prstatus before the registers: siginfo, cursig, sigpend, sighold, pid, ppid,
# pgrp, sid, and four struct timeval
_STATUS = struct.Struct("<3ih2xQQ4i8q")
_INFO = struct.Struct("<cc?b4xQII4i16s80s")


def _note(name: bytes, kind: int, content: bytes) -> bytes:
    name += b"\0"
    padded = name.ljust(-(-len(name) // 4) * 4, b"\0")
    head = struct.pack("<III", len(name), len(content), kind)
    return head + padded + content.ljust(-(-len(content) // 4) * 4, b"\0")


def _fields(stat: bytes) -> list[str]:
    return stat.decode(errors="replace").rpartition(")")[2].split()


def _status(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode(errors="replace").split("\n"))
    return {key: value.strip() for key, _, value in pairs}


@dataclass(frozen=True)
class ProcFiles:
    """What /proc said of a process while it stood still, as it came: notes are made of it later."""

    pid: int
    auxv: bytes
    cmdline: bytes
    comm: bytes
    vmas: tuple[Vma, ...]


def see(pid: int, vmas: Sequence[Vma]) -> ProcFiles:
    """Errors: OSError when the process is gone."""
    auxv, cmdline, comm = (
        Path(f"/proc/{pid}/{name}").read_bytes() for name in ("auxv", "cmdline", "comm")
    )
    return ProcFiles(pid, auxv, cmdline, comm, tuple(vmas))


def ns_pid(pid: int, threads: Sequence[ThreadState]) -> int:
    """A process's number in its own pid namespace."""
    return int(_status(threads[0].status).get("NSpid", str(pid)).split()[-1]) if threads else pid


def _timeval(ticks: str) -> tuple[int, int]:
    per_second = os.sysconf("SC_CLK_TCK")
    seconds, rest = divmod(int(ticks), per_second)
    return seconds, rest * 1_000_000 // per_second


def _prstatus(thread: ThreadState) -> bytes:
    stat = _fields(thread.stat)
    ppid, group, session, pending = (int(stat[i]) for i in (1, 2, 3, 28))
    times = [part for i in (11, 12, 13, 14) for part in _timeval(stat[i])]
    head = _STATUS.pack(
        *(0, 0, 0, 0, pending, int.from_bytes(thread.mask, "little")),
        *(thread.tid, ppid, group, session, *times),
    )
    return head + thread.registers + struct.pack("<i4x", bool(thread.floating))


def _prpsinfo(seen: ProcFiles, first: ThreadState) -> bytes:
    stat, status = _fields(first.stat), _status(first.status)
    uid, gid = (int(status[name].split()[0]) for name in ("Uid", "Gid"))
    ppid, group, session = (int(stat[i]) for i in (1, 2, 3))
    nice, flags = int(stat[16]), int(stat[6])
    command = seen.cmdline.replace(b"\0", b" ").strip()
    return _INFO.pack(
        *(b"\0", b"R", False, nice, flags, uid, gid, seen.pid, ppid, group, session),
        *(seen.comm.removesuffix(b"\n")[:15], command[:79]),
    )


def _files(vmas: Sequence[Vma]) -> bytes:
    shown = [v for v in vmas if v.inode]
    head = struct.pack("<QQ", len(shown), _PAGE)
    table = b"".join(struct.pack("<QQQ", v.start, v.end, v.offset // _PAGE) for v in shown)
    names = b"".join(v.path.encode(errors="surrogateescape") + b"\0" for v in shown)
    return head + table + names


def notes_of(seen: ProcFiles, threads: Sequence[ThreadState], own: PageSet) -> bytes:
    """The notes of a process: its first thread's, then what belongs to the process, then the other
    threads', as the kernel does it, and at last ours, of its own pages."""
    parts = []
    for number, thread in enumerate(threads):
        parts.append(_note(b"CORE", _PRSTATUS, _prstatus(thread)))
        if number == 0:
            parts.append(_note(b"CORE", _PRPSINFO, _prpsinfo(seen, thread)))
            parts.append(_note(b"CORE", _AUXV, seen.auxv))
            parts.append(_note(b"CORE", _FILE, _files(seen.vmas)))
        if thread.floating:
            parts.append(_note(b"CORE", _PRFPREG, thread.floating))
        if thread.extended:
            parts.append(_note(b"LINUX", _X86_XSTATE, thread.extended))
    starts, ends = page_runs(own)
    runs = np.stack((starts, ends - starts), axis=1)
    parts.append(_note(OWN_NAME, OWN_PAGES, runs.tobytes()))
    return b"".join(parts)
