"""The stub that runs in a target, and the plan that it carries out."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.smaps import SmapsMapping
from redirty.collector.pagetables.planner import (
    HUGE,
    IN_USE,
    MERGED,
    REGION,
    StepPlanner,
    overlaps,
    plan,
    stays,
)
from redirty.collector.pagetables.preconditions import require_node
from redirty.collector.pagetables.relocation import StepSizer
from redirty.collector.ptrace.helpers import procfs, relocation, relocation_layout, relocation_stub
from redirty.collector.ptrace.helpers.errors import TraceeError

from tests.tiers import require

HELPERS = Path(relocation.__file__).parent

WORD = (1 << 64) - 1


def assembled(tmp_path: Path) -> tuple[bytes, dict[str, int]]:
    """Assemble relocation_stub.S; return its bytes and its symbols."""
    for program in ("gcc", "objcopy", "nm"):
        require(shutil.which(program), f"needs {program} (Debian packages gcc, binutils)")
    made, code = tmp_path / "made.o", tmp_path / "code"
    subprocess.run(["gcc", "-c", "-o", made, HELPERS / "relocation_stub.S"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, code], check=True)
    listed = subprocess.run(["nm", made], check=True, capture_output=True, text=True).stdout
    symbols = {m[2]: int(m[1], 16) for m in re.finditer(r"^(\w+) \w (\w+)$", listed, re.MULTILINE)}
    return code.read_bytes(), symbols


def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    code, symbols = assembled(tmp_path)
    assert code == relocation_stub.CODE
    assert (symbols["mover"], symbols["park"]) == (relocation_stub.MOVER, relocation_stub.PARK)
    assert len(code) <= relocation_stub.DATA == symbols["DATA"]
    for name in ("STATE", "ERROR", "COUNT", "PAUSE", "POLICY_ERROR", "NEW_MODE", "RETRIES"):
        assert getattr(relocation_stub, name) == symbols[f"S_{name}"], name
    assert (symbols["S_NEW_NODES"], symbols["S_TABLE"]) == (
        relocation_stub.NEW_NODES,
        relocation_stub.TABLE,
    )
    assert symbols["NODE_BITS"] == relocation_stub.MAX_NODES + 1
    assert relocation_stub.TABLE + 24 * relocation_stub.MAX_SEGMENTS <= relocation_stub.SHARED_BYTES


def test_registers_are_where_the_stub_reads_them(tmp_path: Path) -> None:
    _, symbols = assembled(tmp_path)
    order = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs flags"
    names = order.split()
    registers = [0x100 + i for i in range(27)]
    registers[names.index("orig_rax")] = WORD
    registers[names.index("flags")] = 0x246 | 1 << 11
    slot = relocation_stub.slot(0xABC, b"\x01" * 8, registers)
    assert len(slot) == relocation_stub.SLOT_BYTES

    def word(symbol: str) -> int:
        return int(struct.unpack_from("<Q", slot, symbols[symbol])[0])

    assert word("D_SHARED") == 0xABC
    assert word("D_MASK") == 0x0101_0101_0101_0101
    for name in (*names[:11], "rcx", "rdx", "rsi", "rdi", "rip"):
        assert word(f"D_{name.upper()}") == registers[names.index(name)], name
    assert word("D_FLAGS") == 0x46 << 8 | 1


@pytest.mark.parametrize(
    ("orig", "rax", "expected"),
    [
        (7, WORD + 1 - 512, (7, 98)),
        (7, WORD + 1 - 513, (7, 98)),
        (7, WORD + 1 - 514, (7, 98)),
        (35, WORD + 1 - 516, (219, 98)),
        (7, WORD + 1 - 4, (WORD - 3, 100)),  # EINTR: returned to the program
        (WORD, WORD + 1 - 512, (WORD - 511, 100)),  # no system call was interrupted
        (7, 3, (3, 100)),
    ],
)
def test_interrupted_calls_are_restarted(orig: int, rax: int, expected: tuple[int, int]) -> None:
    registers = [0] * 27
    registers[15], registers[10], registers[16] = orig, rax, 100
    assert relocation_stub.resumed(registers) == expected


def test_addresses_in_between_are_off_the_alignment_and_disjoint() -> None:
    runs = [(4 * REGION, 6 * REGION), (9 * REGION, 10 * REGION)]
    lines = [(4 * REGION - 4096, 5 * REGION, "rw-p"), (5 * REGION, 11 * REGION, "r--s")]
    segments = relocation_layout.clipped(lines, runs)
    assert segments == [
        (4 * REGION, 5 * REGION, "rw-p"),
        (5 * REGION, 6 * REGION, "r--s"),
        (9 * REGION, 10 * REGION, "r--s"),
    ]
    found = relocation_layout.layout(runs, segments, 100 * REGION)
    assert [(a, n) for a, _, n in found] == [(a, b - a) for a, b, _ in segments]
    assert all((to - a) % REGION == 4096 for a, to, _ in found)
    ranges = sorted((to, to + n) for _, to, n in found)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def test_a_free_place_is_free() -> None:
    top = (1 << 47) - 4096
    lines = [
        (1 << 22, 1 << 23, "rw-p"),
        (1 << 40, (1 << 40) + 4096, "rw-p"),
        (top, 1 << 47, "rw-p"),
    ]
    size = 100 * REGION
    place = relocation_layout.free_place(lines, size)
    assert place % REGION == 0
    assert all(end <= place or start >= place + size for start, end, _ in lines)
    assert relocation_layout.free_place([(1 << 21, 1 << 47, "rw-p")], size) == 0


def test_maps_lines_are_parsed() -> None:
    text = (
        b"1000-2000 rw-p 0 0:0 0   [x y]\n2000-3000 r--s 0 0:0 9 /a\rb \n3000-4000 r-xp 0 0:0 0 \n"
    )
    found = procfs.parse_maps(text)
    assert [mapping for mapping, _ in found] == [
        (0x1000, 0x2000, "rw-p"),
        (0x2000, 0x3000, "r--s"),
        (0x3000, 0x4000, "r-xp"),
    ]
    assert [procfs.path_of(rest) for _, rest in found] == [b"[x y]", b"/a\rb ", b""]


def test_an_area_in_use_is_refused() -> None:
    segments = [(0x1000, 0x9000, 0x2000)]
    relocation.require_unused([0xFFF, 0x3000], segments)
    with pytest.raises(relocation.InUseError) as found:
        relocation.require_unused([0x5000, 0x2FFF], segments)
    assert found.value.addresses == [0x5000, 0x2FFF]
    with pytest.raises(TraceeError):
        relocation.require_unused([-1], segments)


# ---- movable mappings ----


def mapping(start: int, end: int, path: str = "", flags: str = "rd wr") -> SmapsMapping:
    """Return a mapping, with addresses given in pages."""
    return SmapsMapping(start << 12, end << 12, "rw-p", path, frozenset(flags.split()))


@pytest.mark.parametrize(
    ("path", "flags", "moves"),
    [
        ("", "rd wr mr", True),
        ("/usr/lib/x.so", "rd ex", True),
        ("/dev/zero (deleted)", "rd wr sh", True),
        ("/dev/shm/x", "rd wr sh", True),
        ("[heap]", "rd wr", True),
        ("[stack]", "rd wr gd", False),
        ("[vdso]", "rd ex de", False),
        ("", "rd wr ht", False),
        ("", "rd wr uw", False),
        ("/dev/nvidia0", "rd wr io pf", False),
        ("/dev/something", "rd wr", False),
        ("/SYSV00000000 (deleted)", "rd wr sh", False),
        ("anon_inode:[io_uring]", "rd wr", False),
        ("/[aio] (deleted)", "rd wr", False),
        ("", "rd sl", False),
    ],
)
def test_which_mappings_move(path: str, flags: str, moves: bool) -> None:
    assert (stays(mapping(0, 1, path, flags)) == "") is moves


def regions(*numbers: int) -> npt.NDArray[np.uint64]:
    return np.array(numbers, np.uint64) * np.uint64(REGION)


def test_merged_pages_stay_merged() -> None:
    mergeable = mapping(0, 1, "", "rd wr mg")
    assert stays(mergeable) == ""
    assert stays(mergeable, merged=True) == MERGED
    assert plan(regions(0), [mergeable], merged=True).kept == {MERGED: 1}
    assert stays(mapping(0, 1, "", "rd wr"), merged=True) == ""


def test_a_region_moves_as_a_whole_or_not_at_all() -> None:
    mappings = [
        mapping(0, 512 * 2 + 10),
        mapping(512 * 2 + 20, 512 * 2 + 30, "", "ht"),
        mapping(512 * 4 - 1, 512 * 5 + 1),
        mapping(512 * 8, 512 * 9),
    ]
    found = plan(regions(0, 1, 2, 3, 4, 5, 6, 8), mappings, in_use=[8 * REGION + 64])
    assert (found.regions // np.uint64(REGION)).tolist() == [0, 1, 3, 4, 5]
    assert found.kept == {"hugetlb pages": 1, IN_USE: 1}
    first, last = overlaps(regions(2, 6), mappings)
    assert (first.tolist(), last.tolist()) == ([0, 3], [2, 3])
    assert HUGE not in found.kept


def test_steps_have_every_region_once_and_what_is_mapped_there() -> None:
    mappings = [mapping(i * 64, i * 64 + 63) for i in range(40)] + [mapping(512 * 10, 512 * 400)]
    wanted = plan(regions(0, 1, 2, 3, 4, *range(10, 400)), mappings)
    assert not wanted.kept
    for most in (1, 3, 100, 1000):
        steps = StepPlanner(wanted)
        seen: list[int] = []
        while step := steps.next(most):
            assert 0 < step.regions <= most
            assert len(step.segments) <= 128
            for start, end in step.runs:
                seen += range(start, end, REGION)
                inside = [s for s in step.segments if start <= s[0] < end]
                expected = relocation_layout.clipped([m[:3] for m in mappings], [(start, end)])
                assert inside == expected
        assert seen == wanted.regions.tolist()


# ---- the size of steps, and refusals ----


def test_steps_grow_to_what_the_pause_allows_and_no_further() -> None:
    sizer = StepSizer(0.020)
    sizes = []
    for _ in range(12):
        sizes.append(sizer.regions)
        # 2 ms of stopping and 0.1 ms a table
        sizer.learn(sizer.regions, 0.002 + sizer.regions * 1e-4, sizer.regions * 1e-4)
    assert sizes[0] <= 2
    assert all(b <= 2 * a for a, b in pairwise(sizes))
    assert 0.002 + max(sizes) * 1e-4 <= 0.020
    assert sizes[-1] > 50
    sizer.learn(sizer.regions, 0.030, 0.001)  # stopping alone takes longer than is allowed
    assert sizer.regions == 1


def nodes(online: tuple[int, ...], with_memory: tuple[int, ...]) -> NumaNodes:
    none = np.empty(0, np.uint64)
    return NumaNodes(online, with_memory, {}, none, none, none.astype(np.int64))


@pytest.mark.parametrize(
    ("online", "with_memory", "node", "expected"),
    [
        ((0,), (0,), 0, "only one node"),
        ((0,), (0,), 1, "--to-node 1: no such node"),
        ((0, 1), (0, 1), 2, "--to-node 2: no such node; nodes with memory are 0, 1"),
        ((0, 1), (0,), 1, "node 1 has no memory"),
    ],
)
def test_nodes_that_are_refused(
    online: tuple[int, ...], with_memory: tuple[int, ...], node: int, expected: str
) -> None:
    with pytest.raises(RedirtyError, match=expected):
        require_node(nodes(online, with_memory), node)
    require_node(nodes((0, 1), (0, 1)), 1)
