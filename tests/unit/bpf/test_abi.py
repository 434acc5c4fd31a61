"""The two sides of the ABI: bpfprogs/ for a C compiler, collector/bpf/abi.py for numpy."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import redirty.bpfprogs as programs
from redirty.collector.bpf import abi, ringbuf

from tests import tiers

HEADER = (programs.DIRECTORY / "events.h").read_text(encoding="utf-8")
TYPES = """
#include <stdio.h>
#include <stddef.h>
#include <stdbool.h>
typedef unsigned char __u8, u8;
typedef unsigned int __u32, u32;
typedef int __s32, s32;
typedef unsigned long long __u64, u64;
#undef __always_inline
#define __always_inline inline
"""
STRUCTS = {
    "rd_bounds": abi.BOUNDS,
    "rd_config": abi.CONFIG,
    "rd_row": abi.ROW,
    "rd_target": abi.TARGET,
    "rd_arm_write": abi.ARM_WRITE,
    "rd_tlb": abi.TLB,
    "rd_stats": abi.STATS,
    "rd_counts": abi.COUNTS,
    "rd_event": abi.EVENT,
    "rd_range": abi.RANGE,
    "rd_stack_key": abi.STACK_KEY,
}


def compiled(tmp_path: Path, code: str, *flags: str) -> Path:
    """Compile C code into a program for this machine."""
    gcc = tiers.require_program("gcc", "gcc")
    source, program = tmp_path / "it.c", tmp_path / "it"
    source.write_text(TYPES + code)
    command = [gcc, "-std=gnu11", "-Wall", "-Werror", f"-I{programs.DIRECTORY}", *flags]
    done = subprocess.run(
        [*command, "-o", program, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


def output(program: Path, text: str = "") -> str:
    return subprocess.run([program], input=text, capture_output=True, text=True, check=True).stdout


def fields_of(struct: str) -> list[str]:
    """Return the names of a structure's members, in their order."""
    body = re.search(rf"^struct {struct} {{(.*?)^}};", HEADER, re.MULTILINE | re.DOTALL)
    assert body, f"no struct {struct} in events.h"
    plain = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return re.findall(r"(\w+)(?:\[\w+\])?;", plain)


def test_every_structure_has_a_numpy_type() -> None:
    found = set(re.findall(r"^struct (\w+) {", HEADER, re.MULTILINE))
    # rd_bits has two forms and no name in numpy: the tracer reads its words.
    assert found == {*STRUCTS, "rd_bits"}


@pytest.mark.parametrize("struct", STRUCTS)
def test_sizes_and_offsets(struct: str, tmp_path: Path) -> None:
    fields = fields_of(struct)
    dtype = STRUCTS[struct]
    assert list(dtype.names or ()) == fields
    prints = "".join(
        f'printf("%zu %zu\\n", offsetof(struct {struct}, {f}), sizeof(it.{f}));' for f in fields
    )
    main = f'int main(void) {{ printf("%zu 0\\n", sizeof(it)); {prints} return 0; }}'
    code = f'#include "events.h"\nstatic struct {struct} it;\n{main}'
    lines = output(compiled(tmp_path, code)).splitlines()
    numbers = [tuple(int(n) for n in line.split()) for line in lines]
    assert numbers[0][0] == dtype.itemsize
    assert dtype.fields is not None
    seen = [(dtype.fields[f][1], dtype.fields[f][0].itemsize) for f in fields]
    assert seen == numbers[1:]


@pytest.mark.parametrize(("flags", "size"), [((), 64), (("-DRD_NO_ATOMIC_OR",), 512)])
def test_a_region_is_a_bit_or_a_byte_a_page(
    flags: tuple[str, ...], size: int, tmp_path: Path
) -> None:
    main = 'int main(void) { printf("%zu\\n", sizeof(struct rd_bits)); return 0; }'
    assert int(output(compiled(tmp_path, f'#include "events.h"\n{main}', *flags))) == size


CONSTANTS = {
    "RD_SPACE_TGID_BITS": abi.TGID_BITS,
    "RD_REGION_BITS": abi.REGION_BITS,
    "RD_REGION_SHIFT": 21,
    "RD_NEAR": abi.NEAR,
    "RD_PROBES": abi.PROBES,
    "RD_CHOSEN": abi.CHOSEN,
    "RD_CLOCK_EACH": abi.CLOCK_EACH,
    "RD_CLOCK_EVERY": abi.CLOCK_EVERY,
    "RD_ARM_WRITES": abi.ARM_WRITES,
    "RD_ARM_SLOT_SHIFT": abi.ARM_SLOT_SHIFT,
    "RD_HIST": abi.HIST,
    "RD_HIST_FIRST_OCTAVE": abi.HIST_FIRST_OCTAVE,
    "RD_HIST_PER_OCTAVE": abi.HIST_PER_OCTAVE,
    "RD_TLB_REASONS": abi.TLB_REASONS,
    "RD_RANGES": abi.RANGES,
    "RD_KINDS": abi.KINDS,
    "RD_WRITE_FAULTS": abi.WRITE_FAULTS,
    "RD_FIRST_TOUCH": abi.FIRST_TOUCH,
    "RD_WRITE_PROTECT": abi.WRITE_PROTECT,
    "RD_COW": abi.COW,
    "RD_MKWRITE": abi.MKWRITE,
    "RD_HUGE": abi.HUGE,
    "RD_TLB_MM_RANGE": abi.TLB_MM_RANGE,
    "RD_TLB_BATCH": abi.TLB_BATCH,
}


def test_constants(tmp_path: Path) -> None:
    named = set(re.findall(r"^#define (RD_\w+) \d", HEADER, re.MULTILINE))
    named |= set(re.findall(r"^\t(RD_\w+) = \d", HEADER, re.MULTILINE))
    assert named == set(CONSTANTS), "every number of events.h has its constant in abi.py"
    pairs = ",".join(f'\\"{name}\\": %d' for name in CONSTANTS)
    main = f'int main(void) {{ printf("{{{pairs}}}", {", ".join(CONSTANTS)}); return 0; }}'
    assert json.loads(output(compiled(tmp_path, f'#include "events.h"\n{main}'))) == CONSTANTS


def test_hash_factor(tmp_path: Path) -> None:
    main = 'int main(void) { printf("%llu\\n", RD_HASH_FACTOR); return 0; }'
    assert int(output(compiled(tmp_path, f'#include "events.h"\n{main}'))) == abi.HASH_FACTOR


def test_names_of_kinds_and_reasons() -> None:
    assert len(abi.TLB_REASON_NAMES) == abi.TLB_REASONS
    assert len(abi.KIND_NAMES) == abi.HUGE + 1
    # The kernel's include/linux/mm_types.h, enum tlb_flush_reason, then our own.
    assert abi.TLB_REASON_NAMES[abi.TLB_MM_RANGE] == "flush_tlb_mm_range"
    assert abi.TLB_REASON_NAMES[abi.TLB_BATCH] == "arch_tlbbatch_flush"


def test_a_record_of_the_ring_is_its_header_and_the_event() -> None:
    names = ringbuf.RECORD.names or ()
    assert names[:2] == ("length", "page")
    assert names[2:] == abi.EVENT.names
    assert ringbuf.RECORD.itemsize == 8 + abi.EVENT.itemsize
    assert ringbuf.RECORD.itemsize % 8 == 0, "the kernel rounds records up to 8 bytes"


def hist_slots(tmp_path: Path, times_ns: list[int]) -> list[int]:
    """Return the slots in which the BPF program's own code would count these times."""
    source = (programs.DIRECTORY / "dirty.bpf.c").read_text(encoding="utf-8")
    found = re.search(
        r"^static __always_inline u32 hist_slot\(.*?^}", source, re.MULTILINE | re.DOTALL
    )
    assert found, "dirty.bpf.c has no hist_slot"
    main = """
    int main(void) {
        unsigned long long ns;
        while (scanf("%llu", &ns) == 1)
            printf("%u\\n", hist_slot(ns));
        return 0;
    }"""
    program = compiled(tmp_path, f'#include "events.h"\n{found[0]}\n{main}')
    return [int(s) for s in output(program, "\n".join(map(str, times_ns))).split()]


def test_histogram_slots_have_the_edges_that_the_collector_assumes(
    tmp_path: Path,
) -> None:
    edges = abi.hist_edges_ns()
    assert (np.diff(edges) > 0).all()
    # Below an edge and on it; in doubles the edges are exact: few bits each.
    whole = [int(edge) for edge in edges[:-1]]
    times = [0, 1, *(t - 1 for t in whole), *whole, (1 << 63) - 1, (1 << 64) - 1]
    times += np.random.default_rng(7).integers(0, 1 << 50, 5000, dtype=np.int64).tolist()
    times += [int(2.0**e) for e in np.random.default_rng(8).uniform(0, 63, 5000)]
    expected = np.searchsorted(edges[:-1], np.array(times, np.uint64).astype(float), side="right")
    exact = [sum(e <= t for e in whole) for t in times[:200]]
    slots = hist_slots(tmp_path, times)
    assert slots[:200] == exact
    assert slots == np.minimum(expected, abi.HIST - 1).tolist()


def test_slots_are_fine_enough_for_a_curve() -> None:
    """The width of a slot is at most a sixteenth of its time, so W(t) is sampled to 6 %."""
    edges = abi.hist_edges_ns()
    assert (np.diff(edges) / edges[:-1]).max() <= 1 / abi.HIST_PER_OCTAVE
    assert edges[-2] > 3600e9, "an hour fits"
