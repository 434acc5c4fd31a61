"""A target with mappings of odd kinds, and ordinary ones. Run as a script, with Python's standard library only.

Its first line of output is a list of {name, start, end, why}; why is not empty where the kernel refused to make
one. Then each line of input, "NAME ADDRESS ...", has it write a word at each of the addresses; it answers [].
"""

import ctypes
import json
import os
import pathlib
import sys
from collections.abc import Callable

PAGE = 4096
PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
SHARED, PRIVATE, FIXED, ANONYMOUS, GROWSDOWN, LOCKED = 1, 2, 0x10, 0x20, 0x100, 0x2000
DROPPABLE, NOREPLACE = 8, 0x100000
SYS_SECRET, SYS_URING, SYS_BPF, SYS_PERF = 447, 425, 321, 298
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def mapped(
    pages: int, prot: int, flags: int, descriptor: int = -1, address: int = 0, offset: int = 0
) -> tuple[int, int]:
    at = libc.mmap(address, pages * PAGE, prot, flags, descriptor, offset)
    if at == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return at, at + pages * PAGE


def plain() -> tuple[int, int]:
    return mapped(32, PROT_READ | PROT_WRITE, PRIVATE | ANONYMOUS)


def write_only() -> tuple[int, int]:
    return mapped(16, PROT_WRITE, PRIVATE | ANONYMOUS)


def grows_down() -> tuple[int, int]:
    return mapped(16, PROT_READ | PROT_WRITE, PRIVATE | ANONYMOUS | GROWSDOWN)


def locked() -> tuple[int, int]:
    return mapped(16, PROT_READ | PROT_WRITE, PRIVATE | ANONYMOUS | LOCKED)


def opened_late() -> tuple[int, int]:
    start, end = mapped(16, PROT_NONE, PRIVATE | ANONYMOUS)
    check(libc.mprotect(start, end - start, PROT_READ | PROT_WRITE))
    return start, end


def high() -> tuple[int, int]:
    """Map memory above 47 bits, where the processor and the kernel have a fifth level of page tables."""
    start, end = mapped(16, PROT_READ | PROT_WRITE, PRIVATE | ANONYMOUS, address=1 << 55)
    if start < 1 << 47:
        raise OSError(0, "the processor or the kernel has four levels of page tables")
    return start, end


def none() -> tuple[int, int]:
    return mapped(1 << 18, PROT_NONE, PRIVATE | ANONYMOUS)


def read_only() -> tuple[int, int]:
    """Map, shared, a file opened for reading only: write protection does not apply to it."""
    return mapped(4, PROT_READ, SHARED, os.open(sys.executable, os.O_RDONLY))


def ring() -> tuple[int, int]:
    """Map an io_uring's rings, which are the kernel's own pages."""
    descriptor = check(libc.syscall(SYS_URING, 8, ctypes.create_string_buffer(120)))
    return mapped(1, PROT_READ | PROT_WRITE, SHARED, descriptor)


def pci() -> tuple[int, int]:
    """Map a device's registers (VM_PFNMAP), without access to them."""
    reason = OSError(0, "the machine has no PCI device with memory of its own")
    for path in sorted(pathlib.Path("/sys/bus/pci/devices").glob("*/resource[0-9]")):
        try:
            return mapped(1, PROT_READ | PROT_WRITE, SHARED, os.open(path, os.O_RDWR))
        except OSError as e:
            reason = e
    raise reason


def hpet() -> tuple[int, int]:
    return mapped(1, PROT_READ, SHARED, os.open("/dev/hpet", os.O_RDONLY))


def secret() -> tuple[int, int]:
    """Map memory that the kernel itself cannot read."""
    descriptor = check(libc.syscall(SYS_SECRET, 0))
    os.ftruncate(descriptor, 4 * PAGE)
    return mapped(4, PROT_READ | PROT_WRITE, SHARED, descriptor)


def bpf() -> tuple[int, int]:
    """Map a BPF map, which is the kernel's own pages."""
    attributes = (ctypes.c_uint32 * 32)(2, 4, 8, 512, 1 << 10)  # an array, BPF_F_MMAPABLE
    descriptor = check(libc.syscall(SYS_BPF, 0, attributes, 128))
    return mapped(1, PROT_READ | PROT_WRITE, SHARED, descriptor)


def droppable() -> tuple[int, int]:
    """Map memory that the kernel may drop instead of swapping it out (Linux 6.11)."""
    return mapped(4, PROT_READ | PROT_WRITE, DROPPABLE | ANONYMOUS)


def perf() -> tuple[int, int]:
    """Map a ring buffer of performance counting, which the kernel writes."""
    attributes = (ctypes.c_uint64 * 16)()
    ctypes.memmove(attributes, (ctypes.c_uint32 * 2)(1, 128), 8)  # software events
    attributes[1] = 9  # a dummy
    descriptor = check(libc.syscall(SYS_PERF, attributes, 0, -1, -1, 0))
    return mapped(3, PROT_READ | PROT_WRITE, SHARED, descriptor)


def describe(make: Callable[[], tuple[int, int]]) -> dict[str, object]:
    start, end, why = 0, 0, ""
    try:
        start, end = make()
        if make in (plain, locked, droppable):
            # A word in each page, so that every later write is the second one.
            for address in range(start, end, PAGE):
                ctypes.c_uint64.from_address(address).value = 1
    except OSError as e:
        why = e.strerror or str(e)
    return {"name": make.__name__, "start": start, "end": end, "why": why}


def main() -> None:
    kinds = (
        plain, write_only, grows_down, locked, opened_late, high, none, read_only, ring, pci,
        hpet, secret, bpf, droppable, perf,
    )  # fmt: skip
    print(json.dumps([describe(make) for make in kinds]), flush=True)
    value = 2
    for line in sys.stdin:
        value += 1
        for address in line.split()[1:]:
            ctypes.c_uint64.from_address(int(address)).value = value
        print("[]", flush=True)


if __name__ == "__main__":
    main()
