"""Code of a target that can be borrowed: a system call instruction, and what leads back from it.

Only read, while the target still runs. Bare library only.
"""

import errno
import os
import re

from . import procfs
from .arch import Architecture
from .errors import TraceeError

_CHUNK_BYTES = 1 << 16
_OVERLAP_BYTES = 16
_MAX_BYTES = 64 << 20  # of code that is searched: a target may map any amount
# The dynamic linker and the C library, which have all that is needed, come first.
_LIKELY = re.compile(rb"/(ld-|ld\.|libc[.-])[^/]*$")


class Code:
    """Addresses of instructions in a process; 0: none was found.

    Attributes:
        call: A system call instruction.
        call_return: A system call instruction that is followed by a return.
        sigreturn: A call of rt_sigreturn, as a signal handler returns to.
        mappings: The process's mappings at the time, as parse_maps() returns them.
    """

    def __init__(self, mappings: "list[tuple[procfs.Mapping, bytes]]") -> None:
        self.call = 0
        self.call_return = 0
        self.sigreturn = 0
        self.mappings = mappings

    @property
    def leads_back(self) -> bool:
        """Return whether a thread can come back from a call by itself."""
        return bool(self.call_return and self.sigreturn)

    def is_part_of(self, at: int, arch: Architecture) -> bool:
        """Return whether an address lies in the code that leads back from a call."""
        return self.leads_back and (
            0 <= at - self.call_return <= len(arch.instruction) or 0 <= at - self.sigreturn < 16
        )

    def still_there(self, memory: int, arch: Architecture) -> bool:
        """Return whether a process still has the system call instructions.

        Args:
            memory: Descriptor of its /proc/PID/mem.
            arch: Its architecture.
        """
        wanted = [(self.call, arch.instruction)]
        if self.leads_back:
            wanted += [(self.call_return, arch.call_return), (self.sigreturn, b"")]
        for at, expected in wanted:
            try:
                found = os.pread(memory, 16, at)
            except OSError:
                return False
            if not found.startswith(expected):
                return False
            if at == self.sigreturn and not arch.sigreturn_code.match(found):
                return False
        return True

    def add(self, at: int, text: bytes, arch: Architecture) -> None:
        """Look for what is not found yet in text, which is mapped at an address."""
        if not self.call and (offset := text.find(arch.instruction)) >= 0:
            self.call = at + offset
        if not self.call_return and (offset := text.find(arch.call_return)) >= 0:
            self.call_return = at + offset
        if not self.sigreturn and (match := arch.sigreturn_code.search(text)):
            self.sigreturn = at + match.start()


def search(pid: int, arch: Architecture) -> Code:
    """Search a process's code: the vdso, then the C library, then the rest, up to a limit.

    Raises:
        TraceeError: No system call instruction was found (ENOENT), or it may not be traced (EPERM).
        OSError: The process is gone.
    """
    try:
        return _search(pid, arch)
    except PermissionError:
        raise TraceeError(
            errno.EPERM, "the kernel does not allow it to be traced (ptrace)"
        ) from None


def _search(pid: int, arch: Architecture) -> Code:
    with open(f"{procfs.directory(pid)}/maps", "rb", buffering=0) as maps:
        found = procfs.parse_maps(maps.readall())
    code = [
        (order(mapping, path), mapping)
        for mapping, path in ((mapping, procfs.path_of(rest)) for mapping, rest in found)
        if "x" in mapping[2] and path != procfs.VSYSCALL
    ]
    result = Code(found)
    left = _MAX_BYTES
    with open(f"{procfs.directory(pid)}/mem", "rb", buffering=0) as memory:
        for _, (start, end, _) in sorted(code):
            at = start
            while at < end and left > 0 and not (result.call and result.leads_back):
                try:
                    text = os.pread(memory.fileno(), min(_CHUNK_BYTES, end - at), at)
                except OSError:
                    break
                result.add(at, text, arch)
                left -= _CHUNK_BYTES
                at += _CHUNK_BYTES - _OVERLAP_BYTES
    if not result.call:
        raise TraceeError(errno.ENOENT, "no system call instruction is mapped in it")
    return result


def order(mapping: procfs.Mapping, path: bytes) -> "tuple[int, int]":
    """Return a key by which mappings are searched: by promise, then the smallest first."""
    start, end, _ = mapping
    if path == procfs.VDSO:
        return 0, 0
    if _LIKELY.search(path):
        return 1, end - start
    return (2 if path.startswith(b"/") else 3), end - start
