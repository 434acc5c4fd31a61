"""Parameters for running a system call in a stopped process, by architecture. Bare library only.

A new architecture is a new entry: the numbers, the bytes of its system call instruction, and where
PTRACE_GETREGSET (NT_PRSTATUS) puts each register. aarch64 would be: numbers 282 and 57, instruction
d4000001 (svc #0), struct user_pt_regs { x0..x30, sp, pc, pstate }, the number in x8, and
NT_ARM_SYSTEM_CALL set to -1 so that no interrupted call is restarted in between.
"""

import errno
import platform
import re

from .errors import TraceeError


class Architecture:
    """An architecture. Indices of registers count 64-bit words of its user_regs_struct.

    Attributes:
        userfaultfd: Number of the system call userfaultfd.
        close: Number of the system call close.
        clone: Number of the system call clone.
        exit: Number of the system call exit, which ends one thread.
        getpid: Number of the system call getpid, which changes nothing.
        sigreturn: Number of the system call rt_sigreturn.
        instruction: Bytes of the system call instruction.
        call_return: The same, followed by a return.
        sigreturn_code: Matches a call of rt_sigreturn.
        registers: Number of words of the register set.
        number: Index of the register for the system call's number.
        result: Index of the register with its result.
        arguments: Indices of the registers for its arguments.
        counter: Index of the program counter.
        stack: Index of the stack pointer.
        interrupted: Index of the word that, set to -1, prevents the restart of an interrupted call.
        begin_again: Numbers of the system calls that return EINTR after any stop, and have done nothing
            then: they can simply begin again.
        receiving: System calls that take MSG_WAITALL -> index of the argument with it.
        sending: System calls that can send a part of what they were given.
        mode: Index of the register that distinguishes a 64-bit program from a 32-bit one.
        mode_value: Its value in a 64-bit program.
    """

    def __init__(
        self,
        *,
        userfaultfd: int,
        close: int,
        clone: int,
        exit: int,
        getpid: int,
        sigreturn: int,
        instruction: bytes,
        call_return: bytes,
        sigreturn_code: "re.Pattern[bytes]",
        registers: int,
        number: int,
        result: int,
        arguments: tuple[int, ...],
        counter: int,
        stack: int,
        interrupted: int,
        begin_again: "frozenset[int]",
        receiving: "dict[int, int]",
        sending: "frozenset[int]",
        mode: int,
        mode_value: int,
    ) -> None:
        self.userfaultfd = userfaultfd
        self.close = close
        self.clone = clone
        self.exit = exit
        self.getpid = getpid
        self.sigreturn = sigreturn
        self.instruction = instruction
        self.call_return = call_return
        self.sigreturn_code = sigreturn_code
        self.registers = registers
        self.number = number
        self.result = result
        self.arguments = arguments
        self.counter = counter
        self.stack = stack
        self.interrupted = interrupted
        self.begin_again = begin_again
        self.receiving = receiving
        self.sending = sending
        self.mode = mode
        self.mode_value = mode_value


# Of sockets with a time limit: read write readv writev connect accept sendto recvfrom sendmsg recvmsg accept4
# recvmmsg sendmmsg; semop semtimedop rt_sigtimedwait io_getevents io_pgetevents epoll_wait epoll_pwait
# epoll_pwait2 io_uring_enter.
_BEGIN_AGAIN = frozenset(
    (0, 1, 19, 20, 42, 43, 44, 45, 46, 47, 288, 299, 307, 65, 220, 128, 208, 333, 232, 281, 441, 426)
)  # fmt: skip
# write writev sendfile sendto sendmsg sendmmsg
_SENDING = frozenset((1, 20, 40, 44, 46, 307))

TABLE = {
    # struct user_regs_struct: r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs
    # flags sp ss fs_base gs_base ds es fs gs
    "x86_64": Architecture(
        userfaultfd=323,
        close=3,
        clone=56,
        exit=60,
        getpid=39,
        sigreturn=15,
        instruction=b"\x0f\x05",
        call_return=b"\x0f\x05\xc3",
        # mov $15, %eax or %rax; syscall
        sigreturn_code=re.compile(rb"(?:\xb8|\x48\xc7\xc0)\x0f\0\0\0\x0f\x05"),
        registers=27,
        number=10,
        result=10,
        arguments=(14, 13, 12, 7, 9, 8),
        counter=16,
        stack=19,
        interrupted=15,
        begin_again=_BEGIN_AGAIN,
        receiving={45: 3, 47: 2, 299: 3},  # recvfrom recvmsg recvmmsg
        sending=_SENDING,
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
