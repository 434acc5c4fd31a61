"""What running one system call inside a stopped process needs, by architecture.

A new one is a new entry: the numbers, the bytes of its system call instruction, and where
PTRACE_GETREGSET (NT_PRSTATUS) puts each register. aarch64 goes here: number 282 and 57,
instruction d4000001 (svc #0), struct user_pt_regs { x0..x30, sp, pc, pstate }, the number in x8,
and NT_ARM_SYSTEM_CALL set to -1 so that no interrupted call is restarted in between.

This module is also run by the injector, which starts with Python's bare library: no imports.
"""


class Architecture:
    """One architecture: indices count 64-bit words of its user_regs_struct."""

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
        self.userfaultfd = userfaultfd  # system call numbers
        self.close = close
        self.instruction = instruction
        self.registers = registers  # how many words there are
        self.number = number  # where the system call's number goes
        self.result = result
        self.arguments = arguments
        self.counter = counter  # the program counter
        self.interrupted = interrupted  # -1 here: there is no interrupted system call to restart
        self.mode = mode  # tells a 64-bit program from a 32-bit one
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
