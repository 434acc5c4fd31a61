"""The notes of a core file: what a debugger needs to know about a process in addition to its memory.

Sources: include/uapi/linux/elf.h, elfcore.h; fs/binfmt_elf.c; core(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from redirty.collector.linux import procfs
from redirty.collector.linux.procfs import parse_status, split_stat
from redirty.collector.mirror.sources.vmas import Vma
from redirty.collector.pageset import PAGE_SIZE, PageSet, page_runs
from redirty.collector.ptrace.freezer_client import ThreadState

_PRSTATUS, _PRFPREG, _PRPSINFO, _AUXV, _FILE = 1, 2, 3, 6, 0x46494C45
_X86_XSTATE = 0x202
# a type that no other tool uses: readers that ignore the name must not take the note for registers
OWN_NAME, OWN_PAGES = b"REDIRTY", 0x52445459
"""The note of the process's own pages: runs (first page, number of pages), 64 bits each."""
# the part of struct elf_prstatus before the registers: siginfo, cursig, sigpend, sighold, pid, ppid,
# pgrp, sid, and four struct timeval
_STATUS = struct.Struct("<3ih2xQQ4i8q")
_INFO = struct.Struct("<cc?b4xQII4i16s80s")


def make_note(name: bytes, kind: int, content: bytes) -> bytes:
    """Return one note, padded to four bytes."""
    name += b"\0"
    padded = name.ljust(-(-len(name) // 4) * 4, b"\0")
    head = struct.pack("<III", len(name), len(content), kind)
    return head + padded + content.ljust(-(-len(content) // 4) * 4, b"\0")


@dataclass(frozen=True)
class ProcFiles:
    """Files in /proc of a stopped process, unparsed: the notes are made after it was resumed."""

    pid: int
    auxv: bytes
    cmdline: bytes
    comm: bytes
    vmas: tuple[Vma, ...]


def read_proc_files(pid: int, vmas: Sequence[Vma]) -> ProcFiles:
    """Read the files of a process that its notes need.

    Raises:
        OSError: the process is gone.
    """
    directory = procfs.directory(pid)
    auxv, cmdline = (Path(directory, name).read_bytes() for name in ("auxv", "cmdline"))
    comm = Path(f"/proc/{pid}/comm").read_bytes()
    return ProcFiles(pid, auxv, cmdline, comm, tuple(vmas))


def ns_pid(pid: int, threads: Sequence[ThreadState]) -> int:
    """Return the ID of a process in its own PID namespace."""
    return (
        int(parse_status(threads[0].status).get("NSpid", str(pid)).split()[-1]) if threads else pid
    )


def _timeval(ticks: str) -> tuple[int, int]:
    per_second = os.sysconf("SC_CLK_TCK")
    seconds, rest = divmod(int(ticks), per_second)
    return seconds, rest * 1_000_000 // per_second


def _prstatus(thread: ThreadState) -> bytes:
    stat = split_stat(thread.stat).fields
    ppid, group, session, pending = (int(stat[i]) for i in (1, 2, 3, 28))
    times = [part for i in (11, 12, 13, 14) for part in _timeval(stat[i])]
    # fmt: off
    head = _STATUS.pack(
        0, 0, 0, 0, pending, int.from_bytes(thread.mask, "little"),
        thread.tid, ppid, group, session, *times,
    )
    # fmt: on
    return head + thread.registers + struct.pack("<i4x", bool(thread.floating))


def _prpsinfo(files: ProcFiles, first: ThreadState) -> bytes:
    stat, status = split_stat(first.stat).fields, parse_status(first.status)
    uid, gid = (int(status[name].split()[0]) for name in ("Uid", "Gid"))
    ppid, group, session = (int(stat[i]) for i in (1, 2, 3))
    nice, flags = int(stat[16]), int(stat[6])
    command = files.cmdline.replace(b"\0", b" ").strip()
    # fmt: off
    return _INFO.pack(
        b"\0", b"R", False, nice, flags, uid, gid, files.pid, ppid, group, session,
        files.comm.removesuffix(b"\n")[:15], command[:79],
    )
    # fmt: on


def _mapped_files(vmas: Sequence[Vma]) -> bytes:
    mapped = [v for v in vmas if v.inode]
    head = struct.pack("<QQ", len(mapped), PAGE_SIZE)
    table = b"".join(struct.pack("<QQQ", v.start, v.end, v.offset // PAGE_SIZE) for v in mapped)
    names = b"".join(v.path.encode(errors="surrogateescape") + b"\0" for v in mapped)
    return head + table + names


def make_notes(files: ProcFiles, threads: Sequence[ThreadState], own: PageSet) -> bytes:
    """Return the notes of a process.

    The order is the kernel's: the first thread, the process, the other threads. The note of the process's
    own pages comes last.
    """
    parts = []
    for number, thread in enumerate(threads):
        parts.append(make_note(b"CORE", _PRSTATUS, _prstatus(thread)))
        if number == 0:
            parts.append(make_note(b"CORE", _PRPSINFO, _prpsinfo(files, thread)))
            parts.append(make_note(b"CORE", _AUXV, files.auxv))
            parts.append(make_note(b"CORE", _FILE, _mapped_files(files.vmas)))
        if thread.floating:
            parts.append(make_note(b"CORE", _PRFPREG, thread.floating))
        if thread.extended:
            parts.append(make_note(b"LINUX", _X86_XSTATE, thread.extended))
    starts, ends = page_runs(own)
    runs = np.stack((starts, ends - starts), axis=1)
    parts.append(make_note(OWN_NAME, OWN_PAGES, runs.tobytes()))
    return b"".join(parts)
