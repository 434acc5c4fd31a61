"""Parameters for running a system call in a stopped process, by architecture. Bare library only.

A new architecture is a new entry: the numbers, the bytes of its system call instruction, and where
PTRACE_GETREGSET (NT_PRSTATUS) puts each register. aarch64 would be: numbers 282 and 57, instruction
d4000001 (svc #0), struct user_pt_regs { x0..x30, sp, pc, pstate }, the number in x8, and
NT_ARM_SYSTEM_CALL set to -1 so that no interrupted call is restarted in between.
"""

import errno
import platform

from .errors import TraceeError


class Architecture:
    """An architecture. Indices of registers count 64-bit words of its user_regs_struct.

    Attributes:
        userfaultfd: Number of the system call userfaultfd.
        close: Number of the system call close.
        instruction: Bytes of the system call instruction.
        registers: Number of words of the register set.
        number: Index of the register for the system call's number.
        result: Index of the register with its result.
        arguments: Indices of the registers for its arguments.
        counter: Index of the program counter.
        interrupted: Index of the word that, set to -1, prevents the restart of an interrupted call.
        mode: Index of the register that distinguishes a 64-bit program from a 32-bit one.
        mode_value: Its value in a 64-bit program.
    """

    def __init__(
        self,
        *,
        userfaultfd: int,
        close: int,
        instruction: bytes,
        registers: int,
        number: int,
        result: int,
        arguments: tuple[int, ...],
        counter: int,
        interrupted: int,
        mode: int,
        mode_value: int,
    ) -> None:
        self.userfaultfd = userfaultfd
        self.close = close
        self.instruction = instruction
        self.registers = registers
        self.number = number
        self.result = result
        self.arguments = arguments
        self.counter = counter
        self.interrupted = interrupted
        self.mode = mode
        self.mode_value = mode_value


TABLE = {
    # struct user_regs_struct: r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs
    # flags sp ss fs_base gs_base ds es fs gs
    "x86_64": Architecture(
        userfaultfd=323,
        close=3,
        instruction=b"\x0f\x05",
        registers=27,
        number=10,
        result=10,
        arguments=(14, 13, 12, 7, 9, 8),
        counter=16,
        interrupted=15,
        mode=17,
        mode_value=0x33,
    ),
}


def architecture() -> Architecture:
    """Return the architecture of this machine.

    Raises:
        TraceeError: The architecture is not supported (ENOSYS).
    """
    try:
        return TABLE[platform.machine()]
    except KeyError:
        raise TraceeError(errno.ENOSYS, f"{platform.machine()} is not supported yet") from None
