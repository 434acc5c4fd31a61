"""Signal frames made by hand: a thread of this test's own child comes back from one with every register."""

from __future__ import annotations

import ctypes
import struct

import pytest
from redirty.collector.ptrace.helpers import return_frame
from redirty.collector.ptrace.helpers.arch import architecture


def test_the_kernel_says_how_large_its_frames_are() -> None:
    size, features = return_frame.own_layout()
    assert size >= 576, "at least the header of the extended state"
    assert features & 3 == 3, "x87 and SSE"
    assert return_frame.own_layout() == (size, features), "its handler is gone again"


def words(**known: int) -> list[int]:
    arch = architecture()
    result = [0] * arch.registers
    for name, value in known.items():
        result[getattr(arch, name)] = value & (1 << 64) - 1
    return result


@pytest.mark.parametrize("error", [-512, -513, -514, -516])
def test_an_interrupted_call_begins_again(error: int) -> None:
    arch = architecture()
    stopped = words(interrupted=202, result=error, counter=0x1002)
    again = return_frame.after_restart(stopped, arch.interrupted, arch.result, arch.counter)
    assert (again[arch.number], again[arch.counter]) == (202, 0x1000)


@pytest.mark.parametrize(("number", "result"), [(-1, -512), (202, -4), (202, 0), (202, 7)])
def test_what_was_not_interrupted_goes_on(number: int, result: int) -> None:
    arch = architecture()
    stopped = words(interrupted=number, result=result, counter=0x1002)
    assert (
        return_frame.after_restart(stopped, arch.interrupted, arch.result, arch.counter) == stopped
    )


def test_a_frame_is_where_the_c_library_looks() -> None:
    """uc_mcontext.gregs of <ucontext.h> are r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, flags."""
    arch = architecture()
    numbers = list(range(100, 100 + arch.registers))
    made = return_frame.frame(numbers, b"\x01" * 8, 0xABC, 0x4000)
    assert len(made) == return_frame.FRAME_BYTES
    assert struct.unpack_from("<Q", made)[0] == 0xABC
    general = struct.unpack_from("<18Q", made, 8 + 40)
    assert general[:8] == tuple(numbers[i] for i in (9, 8, 7, 6, 3, 2, 1, 0))
    assert general[15] == numbers[arch.stack]
    assert general[16] == numbers[arch.counter]
    assert struct.unpack_from("<Q", made, 8 + 224)[0] == 0x4000
    assert made[8 + 296 : 8 + 304] == b"\x01" * 8


def extended(in_use: int, size: int, features: int) -> bytes:
    state = bytearray(size)
    struct.pack_into("<Q", state, 464, features)
    struct.pack_into("<Q", state, 512, in_use)
    state[-1] = 9
    return bytes(state)


def test_only_what_the_program_uses_is_restored() -> None:
    """A processor with tiles (AMX) has a large state; who did not ask for them has a small frame."""
    small, tiles = (2696, 0x2E7), 0x602E7
    plain = return_frame.floating_state(extended(0x7, 11008, tiles), small)
    assert len(plain) == 2696 + 4
    assert struct.unpack_from("<IIQI", plain, 464) == (0x46505853, 2700, 0x2E7, 2696)
    assert plain[-4:] == struct.pack("<I", 0x46505845)
    with_tiles = return_frame.floating_state(extended(0x40007, 11008, tiles), small)
    assert len(with_tiles) == 11008 + 4
    assert struct.unpack_from("<IIQI", with_tiles, 464) == (0x46505853, 11012, tiles, 11008)


@pytest.mark.parametrize(("size", "layout"), [(0, (2696, 7)), (512, (2696, 7)), (2696, (0, 0))])
def test_a_state_that_cannot_be_restored(size: int, layout: tuple[int, int]) -> None:
    assert return_frame.floating_state(bytes(size), layout) == b""


def test_the_handler_of_the_layout_is_removed() -> None:
    return_frame.own_layout()
    old = ctypes.create_string_buffer(152)
    assert ctypes.CDLL(None).sigaction(10, None, old) == 0
    assert struct.unpack_from("<Q", old)[0] in (0, 1), "SIG_DFL or SIG_IGN"
