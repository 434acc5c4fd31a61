"""The stub that relocates page tables from inside a target: relocation_stub.S as bytes, and its data.

Run by the injector with the bare library. x86-64 only.
"""

import struct

# relocation_stub.S, assembled; a test assembles it again and compares.
CODE = bytes.fromhex(
    "488b1df903000031c0b901000000f00fb10b0f8551010000b8ef000000488d7b30488db300010000ba010400"
    "004531d24531c00f05488943384885c00f85cd000000b8ee000000488b7b40488db380000000ba010400000f"
    "05488943384885c00f85a90000004531e44c3b631073364f8d34644e8db4f300020000498b3e498b76104889"
    "f241ba030000004d8b4608b8190000000f05493b4608750549ffc4ebc8488943084d85e4744e4f8d34644e8d"
    "b4f3e8010000498b7e08498b76104889f241ba030000004d8b06b8190000000f05493b06741d48ff4348b880"
    "000000488d7b2831f6488d531841ba080000000f05ebc349ffccebadb8ee00000048637b30488db300010000"
    "ba010400000f05c7030200000041bce8030000b880000000488d7b2831f6488d531841ba080000000f0541ff"
    "cc75e4eb30488b1dc002000031c0b902000000f00fb10b833b027419b880000000488d7b2831f6488d531841"
    "ba080000000f05ebe2b80e000000bf02000000488d358e02000031d241ba080000000f05488b1d8d02000048"
    "8b0d8e020000488b158f020000488b3590020000488b3d91020000488b2d920200004c8b05930200004c8b0d"
    "940200004c8b15950200004c8b1d960200004c8b25970200004c8b2d980200004c8b35990200004c8b3d9a02"
    "0000488b05a3020000047f9e488b0519020000ff258b020000"
)
MOVER, PARK = 0x0, 0x139
DATA, SLOT_BYTES = 0x400, 0x800  # offset of a thread's data behind its code; size of both
SHARED_BYTES = 4096
STATE, ERROR, COUNT, PAUSE, POLICY_ERROR = 0, 8, 16, 24, 56
NEW_MODE, RETRIES, NEW_NODES, TABLE = 64, 72, 128, 512
DONE = 2
MAX_SEGMENTS = 128
MAX_NODES = 1024
# MPOL_PREFERRED: another node when this one is full, where a binding would invoke the OOM killer
PREFERRED = 1

# where PTRACE_GETREGSET puts registers, in the order of relocation_stub.S: rax rbx rcx rdx rsi rdi rbp r8 ... r15
_ORDER = (10, 5, 11, 12, 13, 14, 4, 9, 8, 7, 6, 3, 2, 1, 0)
_RAX, _ORIG_RAX, _RIP, _FLAGS = 10, 15, 16, 18
_WORD = (1 << 64) - 1
_RESTART_SYSCALL = 219
_SYSCALL_BYTES = 2


def resumed(registers: "list[int]") -> "tuple[int, int]":
    """Return (rax, rip) with which a stopped thread resumes.

    An interrupted system call is restarted, as the kernel does on its return to user space
    (arch_do_signal_or_restart).
    """
    rax, rip = registers[_RAX], registers[_RIP]
    if not registers[_ORIG_RAX] >> 63:
        error = _WORD + 1 - rax
        if error in (512, 513, 514):  # ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
            return registers[_ORIG_RAX], rip - _SYSCALL_BYTES
        if error == 516:  # ERESTART_RESTARTBLOCK
            return _RESTART_SYSCALL, rip - _SYSCALL_BYTES
    return rax, rip


def slot(shared: int, mask: bytes, registers: "list[int]") -> bytes:
    """Return a thread's copy of the stub: code, signal mask (8 bytes) and registers to resume with."""
    rax, rip = resumed(registers)
    flags = registers[_FLAGS]
    words = [registers[i] for i in _ORDER]
    words[0] = rax
    ax = (flags & 0xFF) << 8 | (flags >> 11 & 1)
    data = struct.pack("<Q", shared) + mask + struct.pack("<17Q", *words, rip, ax)
    return CODE.ljust(DATA, b"\xcc") + data.ljust(SLOT_BYTES - DATA, b"\0")


def shared(node: int, segments: "list[tuple[int, int, int]]") -> bytes:
    """Return the page that all threads share. segments: (address, transit address, bytes) each."""
    page = bytearray(SHARED_BYTES)
    struct.pack_into("<Q", page, COUNT, len(segments))
    struct.pack_into("<QQ", page, PAUSE, 0, 1_000_000)
    struct.pack_into("<Q", page, NEW_MODE, PREFERRED)
    struct.pack_into("<Q", page, NEW_NODES + node // 64 * 8, 1 << node % 64)
    for i, segment in enumerate(segments):
        struct.pack_into("<QQQ", page, TABLE + 24 * i, *segment)
    return bytes(page)


def borrowed(registers: "list[int]", entry: int) -> "list[int]":
    """Return registers with which a thread enters the stub: no interrupted call is to be restarted."""
    words = list(registers)
    words[_ORIG_RAX] = _WORD
    words[_RIP] = entry
    return words


def instruction(registers: "list[int]") -> int:
    """Return a thread's program counter."""
    return registers[_RIP]
