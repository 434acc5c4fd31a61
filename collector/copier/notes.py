"""The notes of a core file: what a debugger asks of a process beside its memory.

Sources: include/uapi/linux/elf.h, elfcore.h; fs/binfmt_elf.c; core(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from redirty.collector.arm.holding import ThreadState
from redirty.collector.copier.layout import Vma

_PRSTATUS, _PRFPREG, _PRPSINFO, _AUXV, _FILE = 1, 2, 3, 6, 0x46494C45
_X86_XSTATE = 0x202
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


def _stat(path: str) -> list[str]:
    text = Path(path, "stat").read_text(errors="replace")
    return text.rpartition(")")[2].split()


def _status(path: str) -> dict[str, str]:
    text = Path(path, "status").read_bytes().decode(errors="replace")
    pairs = (line.partition(":") for line in text.split("\n"))
    return {key: value.strip() for key, _, value in pairs}


def _timeval(ticks: str) -> tuple[int, int]:
    per_second = os.sysconf("SC_CLK_TCK")
    seconds, rest = divmod(int(ticks), per_second)
    return seconds, rest * 1_000_000 // per_second


def _prstatus(pid: int, thread: ThreadState) -> bytes:
    place = f"/proc/{pid}/task/{thread.tid}"
    stat, status = _stat(place), _status(place)
    ppid, group, session = (int(stat[i]) for i in (1, 2, 3))
    times = [part for i in (11, 12, 13, 14) for part in _timeval(stat[i])]
    head = _STATUS.pack(
        *(0, 0, 0, 0, int(status.get("SigPnd", "0"), 16), int(status.get("SigBlk", "0"), 16)),
        *(thread.tid, ppid, group, session, *times),
    )
    return head + thread.registers + struct.pack("<i4x", bool(thread.floating))


def _prpsinfo(pid: int) -> bytes:
    stat, status = _stat(f"/proc/{pid}"), _status(f"/proc/{pid}")
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").strip()
    comm = Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n")
    uid, gid = (int(status[name].split()[0]) for name in ("Uid", "Gid"))
    ppid, group, session = (int(stat[i]) for i in (1, 2, 3))
    nice, flags = int(stat[16]), int(stat[6])
    return _INFO.pack(
        *(b"\0", b"R", False, nice, flags, uid, gid, pid, ppid, group, session),
        *(comm[:15], command[:79]),
    )


def _files(vmas: Sequence[Vma]) -> bytes:
    shown = [v for v in vmas if v.inode]
    head = struct.pack("<QQ", len(shown), _PAGE)
    table = b"".join(struct.pack("<QQQ", v.start, v.end, v.offset // _PAGE) for v in shown)
    names = b"".join(v.path.encode(errors="surrogateescape") + b"\0" for v in shown)
    return head + table + names


def notes_of(pid: int, threads: Sequence[ThreadState], vmas: Sequence[Vma]) -> bytes:
    """The notes of a process that stands still: its first thread's, then what belongs to the process,
    then the other threads', as the kernel does it.

    Errors: OSError when it is gone.
    """
    parts = []
    for number, thread in enumerate(threads):
        parts.append(_note(b"CORE", _PRSTATUS, _prstatus(pid, thread)))
        if number == 0:
            parts.append(_note(b"CORE", _PRPSINFO, _prpsinfo(pid)))
            parts.append(_note(b"CORE", _AUXV, Path(f"/proc/{pid}/auxv").read_bytes()))
            parts.append(_note(b"CORE", _FILE, _files(vmas)))
        if thread.floating:
            parts.append(_note(b"CORE", _PRFPREG, thread.floating))
        if thread.extended:
            parts.append(_note(b"LINUX", _X86_XSTATE, thread.extended))
    return b"".join(parts)
