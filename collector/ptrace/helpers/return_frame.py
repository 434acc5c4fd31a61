"""Signal frames of x86-64, as the kernel writes them for a handler and reads them back in rt_sigreturn.

A thread whose registers are borrowed finds back by such a frame, also when this process has died: the
call that it was made to do returns into rt_sigreturn, which restores everything. Bare library only.
Sources: arch/x86/include/uapi/asm/sigcontext.h, arch/x86/kernel/signal_64.c, arch/x86/kernel/fpu/signal.c.
"""

import ctypes
import signal
import struct

FRAME_BYTES = 440
"""A struct rt_sigframe: the return address, ucontext, siginfo."""

_UC_FP_XSTATE, _UC_SIGCONTEXT_SS, _UC_STRICT_RESTORE_SS = 1, 2, 4
_MAGIC1, _MAGIC2 = 0x46505853, 0x46505845
_SOFTWARE_AT, _XSTATE_BV_AT, _MIN_XSTATE_BYTES = 464, 512, 576
# Indices in user_regs_struct of r8 ... r15 di si bp bx dx ax cx sp ip flags, the order of a sigcontext
_ORDER = (9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, 10, 11, 19, 16, 18)
_CS, _SS = 17, 20
# Not a valid stack_t: the kernel leaves the thread's alternate signal stack as it is (restore_altstack).
_NO_STACK = struct.pack("<QixxxxQ", 0, 7, 0)
# Interrupted calls, as at a stop: the kernel would restart them on return to user space.
_RESTARTS = (-512, -513, -514, -516)

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", _Handler),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def frame(words: "list[int]", mask: bytes, restorer: int, floating_at: int = 0) -> bytes:
    """Return a frame that restores registers and a signal mask.

    Args:
        words: The registers, as user_regs_struct has them.
        mask: The signal mask, 8 bytes.
        restorer: Address of a call of rt_sigreturn.
        floating_at: Address of what floating_state() returned; 0: reset that state.
    """
    flags = _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS
    flags |= _UC_FP_XSTATE if floating_at else 0
    general = struct.pack("<18Q4H", *(words[i] for i in _ORDER), words[_CS], 0, 0, words[_SS])
    context = general + struct.pack("<4QQ64x", 0, 0, 0, 0, floating_at)
    head = struct.pack("<3Q", restorer, flags, 0) + _NO_STACK
    return (head + context + mask).ljust(FRAME_BYTES, b"\0")


def after_restart(words: "list[int]", number: int, result: int, counter: int) -> "list[int]":
    """Return registers with which an interrupted system call begins again.

    That is what the kernel does on return to user space, but not from rt_sigreturn.

    Args:
        words: The registers at the stop.
        number: Index of the word with the number of the interrupted call.
        result: Index of its result, and of the number of the next call.
        counter: Index of the program counter.
    """
    words = list(words)
    if (
        ctypes.c_int64(words[number]).value >= 0
        and ctypes.c_int64(words[result]).value in _RESTARTS
    ):
        words[result] = words[number]
        words[counter] -= 2
    return words


def own_layout() -> "tuple[int, int]":
    """Return the size of the extended state in this process's own signal frames, and its features.

    The size in another's is the same, unless that one uses what a program has to ask for (AMX).
    (0, 0): the processor has no such state.
    """
    seen = [(0, 0)]

    def handler(_number: int, _info: int, context: int) -> None:
        address = ctypes.c_uint64.from_address(context + 224).value
        if address:
            software = ctypes.string_at(address + _SOFTWARE_AT, 20)
            magic, _, features, size = struct.unpack("<IIQI", software)
            if magic == _MAGIC1:
                seen[0] = size, features

    libc = ctypes.CDLL(None)
    action, old = (
        _Action(_Handler(handler), (ctypes.c_byte * 128)(), 4, None),
        _Action(),
    )  # SA_SIGINFO
    if libc.sigaction(signal.SIGUSR1, ctypes.byref(action), ctypes.byref(old)) == 0:
        libc["raise"](signal.SIGUSR1)
        libc.sigaction(signal.SIGUSR1, ctypes.byref(old), None)
    return seen[0]


def floating_state(extended: bytes, layout: "tuple[int, int]") -> bytes:
    """Return the part of a signal frame with floating point and extended registers.

    Args:
        extended: The register set NT_X86_XSTATE.
        layout: As own_layout() returns it.

    Returns:
        The state, which must lie at a multiple of 64; empty if it cannot be restored from a frame.
    """
    size, features = layout
    if not size or len(extended) < max(size, _MIN_XSTATE_BYTES):
        return b""
    (in_use,) = struct.unpack_from("<Q", extended, _XSTATE_BV_AT)
    if in_use & ~features:
        size = len(extended)
        (features,) = struct.unpack_from("<Q", extended, _SOFTWARE_AT)
    software = struct.pack("<IIQI28x", _MAGIC1, size + 4, features, size)
    state = extended[:_SOFTWARE_AT] + software + extended[_XSTATE_BV_AT:size]
    return state + struct.pack("<I", _MAGIC2)
