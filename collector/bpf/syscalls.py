"""bpf(2) and perf_event_open(2), for probing a kernel and draining maps.

Structures: include/uapi/linux/bpf.h and perf_event.h. BCC has no calls for these that work
on whole arrays, or that stay silent when the kernel refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_libc = ctypes.CDLL(None, use_errno=True)
_NR = {"x86_64": (321, 298), "aarch64": (280, 241)}  # bpf, perf_event_open

PROG_LOAD, PROG_TEST_RUN, OBJ_GET_INFO_BY_FD, RAW_TRACEPOINT_OPEN = 5, 10, 15, 17
MAP_LOOKUP, MAP_UPDATE, MAP_DELETE = 1, 2, 3
MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH = 24, 25
TYPE_KPROBE, TYPE_RAW_TRACEPOINT, TYPE_TRACING = 2, 17, 26
TRACE_FENTRY = 24
_TRIES = 5  # the verifier gives up (EAGAIN) when a signal arrives, such as SIGWINCH of a resized terminal
_INFO_BYTES, _RECURSION_MISSES = 224, 208  # struct bpf_prog_info


def bpf(command: int, attributes: bytes) -> int:
    """Call bpf(2). Raises: OSError."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 144))
    return _bpf(command, buffer)


def _bpf(command: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    number = _NR[platform.machine()][0]
    result: int = _libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def load_noop(program_type: int, attach_type: int = 0, btf_id: int = 0) -> int:
    """Load the program "return 0" of a type; return its descriptor.

    Raises:
        OSError: The kernel refused it.
    """
    return _load(_RETURN, program_type, attach_type, btf_id)


def load_reader() -> int:
    """Load a program that calls bpf_probe_read_kernel, as all of redirty's do; return its descriptor.

    Raises:
        OSError: The kernel refused it; EINVAL: BPF may not call this function.
    """
    return _load(_READ + _RETURN, TYPE_RAW_TRACEPOINT)


def has_atomics() -> bool:
    """Return whether BPF has the atomic OR, compare-and-swap and additions that return the sum.

    They exist from Linux 5.12 on (on arm64 from 5.18 on). All were added together, so one is tried.
    """
    try:
        os.close(_load(_OR + _RETURN, TYPE_RAW_TRACEPOINT))
    except OSError:
        return False
    return True


def _instruction(code: int, to: int = 0, source: int = 0, value: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


_RETURN = _instruction(0xB7) + _instruction(0x95)  # r0 = 0; exit
_READ = (
    _instruction(0xBF, 1, 10)  # r1 = r10, the end of the stack
    + _instruction(0x07, 1, value=-8)
    + _instruction(0xB7, 2, value=8)  # 8 bytes
    + _instruction(0xB7, 3)  # from address 0: it is never run
    + _instruction(0x85, value=113)  # bpf_probe_read_kernel
)
_OR = (
    _instruction(0xB7, 1)  # r1 = 0
    + _instruction(0x7B, 10, 1, offset=-8)  # on the stack
    + _instruction(0xDB, 10, 1, 0x40, offset=-8)  # |= r1, atomically
)


def _load(code: bytes, program_type: int, attach_type: int = 0, btf_id: int = 0) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    # type, instructions, licence, log (level, size, buffer), kernel version, flags, name, interface,
    # attach type, BTF of the program (seven values), BTF id of the function, program to replace
    attributes = struct.pack(
        "<IIQQIIQII16sIIIIQIIQIII",
        program_type, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence),
        0, 0, 0, 0, 0, b"redirty_try", 0,
        attach_type, 0, 0, 0, 0, 0, 0, 0, btf_id, 0,
    )  # fmt: skip
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            return bpf(PROG_LOAD, attributes)
    return bpf(PROG_LOAD, attributes)


def open_raw_tracepoint(program: int, name: str | None) -> int:
    """Attach a program to a raw tracepoint, or (no name) to the function it was loaded for.

    Returns:
        A descriptor that keeps it attached.

    Raises:
        OSError: The kernel refused.
    """
    text = ctypes.create_string_buffer(name.encode()) if name else None
    address = ctypes.addressof(text) if text else 0
    return bpf(RAW_TRACEPOINT_OPEN, struct.pack("<QI", address, program))


def run_raw_tracepoint(program: int, argument: int = 0) -> None:
    """Run a raw tracepoint's program once, synchronously, as if called with one argument.

    Raises:
        OSError: The kernel refused, as before Linux 5.10.
    """
    arguments = struct.pack("<Q", argument)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    context = (len(arguments), 0, ctypes.addressof(buffer), 0)
    bpf(PROG_TEST_RUN, struct.pack("<IIIIQQIIIIQQ", program, 0, 0, 0, 0, 0, 0, 0, *context))


def open_kprobe(pmu_type: int, function: str) -> int:
    """Open a kprobe on a function as a perf event; return its descriptor. Raises: OSError."""
    name = ctypes.create_string_buffer(function.encode())
    attributes = struct.pack(
        "<IIQQQQQIIQQ", pmu_type, 120, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), 0
    )
    buffer = ctypes.create_string_buffer(attributes, 120)
    number = _NR[platform.machine()][1]
    result: int = _libc.syscall(number, buffer, -1, 0, -1, 8)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def recursion_misses(program: int) -> int:
    """Return how often the kernel skipped a program because one was running on that processor already.

    That never happens where BPF programs cannot be preempted. 0 before Linux 5.12, which does not
    count it (kprobes: before 6.7). Raises: OSError.
    """
    info = ctypes.create_string_buffer(_INFO_BYTES)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, _INFO_BYTES, ctypes.addressof(info)))
    (misses,) = struct.unpack_from("<Q", info, _RECURSION_MISSES)
    return int(misses)


def _element(fd: int, key: int, value: int, flags: int) -> bytes:
    return struct.pack("<IIQQQ", fd, 0, key, value, flags)


def map_update(fd: int, key: npt.NDArray[np.generic], value: npt.NDArray[np.generic]) -> None:
    """Write one element. Raises: OSError (E2BIG: the map is full)."""
    bpf(MAP_UPDATE, _element(fd, key.ctypes.data, value.ctypes.data, 0))


def map_lookup(fd: int, key: npt.NDArray[np.generic], value: npt.NDArray[np.generic]) -> bool:
    """Read one element into value; return False if there is none. Raises: OSError."""
    try:
        bpf(MAP_LOOKUP, _element(fd, key.ctypes.data, value.ctypes.data, 0))
    except FileNotFoundError:
        return False
    return True


def map_delete(fd: int, key: npt.NDArray[np.generic]) -> None:
    """Remove one element if it is there. Raises: OSError."""
    try:
        bpf(MAP_DELETE, _element(fd, key.ctypes.data, 0, 0))
    except FileNotFoundError:
        pass


@dataclass
class HashReader:
    """Reads, or reads and empties, a whole BPF hash map in bulk.

    Attributes:
        fd: The map.
        keys: Scratch array, reused by each call, one row for each element.
        values: Likewise. What a call returns are copies of the rows that were filled.
    """

    fd: int
    keys: npt.NDArray[np.generic]
    values: npt.NDArray[np.generic]

    def drain(self) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
        """Remove and return all elements: (keys, values), in no order."""
        return self._read(MAP_LOOKUP_AND_DELETE_BATCH)

    def read(self) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
        """Return all elements: (keys, values), in no order."""
        return self._read(MAP_LOOKUP_BATCH)

    def _read(self, command: int) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
        keys, values = [], []
        cursor = np.zeros(2, np.uint32)  # where the last call stopped, where this one will
        first = True
        while True:
            attributes = struct.pack(
                "<QQQQIIQQ",
                0 if first else cursor.ctypes.data,
                cursor.ctypes.data + 4,
                self.keys.ctypes.data,
                self.values.ctypes.data,
                len(self.keys),
                self.fd,
                0,
                0,
            )
            buffer = ctypes.create_string_buffer(attributes, 144)
            done = False
            try:
                _bpf(command, buffer)
            except OSError as e:
                if e.errno == errno.ENOENT:
                    done = True
                elif e.errno == errno.EINTR:
                    continue
                else:
                    raise
            (count,) = struct.unpack_from("<I", buffer, 32)
            if count:
                keys.append(self.keys[:count].copy())
                values.append(self.values[:count].copy())
            if done:
                break
            cursor[0] = cursor[1]
            first = False
        if not keys:
            return self.keys[:0].copy(), self.values[:0].copy()
        return np.concatenate(keys), np.concatenate(values)
