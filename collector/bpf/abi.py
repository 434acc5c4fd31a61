"""The collector's side of bpfprogs/events.h: map values and ring records as numpy types.

tests/unit compiles events.h and compares every size and offset.
"""

from __future__ import annotations

import numpy as np

TGID_BITS = 22
REGION_BITS = 36
NEAR = 4096
HASH_FACTOR = 0x9E37_79B9_7F4A_7C15
PROBES = 64
CLOCK_EACH, CLOCK_EVERY = 512, 8
ARM_WRITES, ARM_SLOT_SHIFT = 32768, 48
HIST = 512
HIST_FIRST_OCTAVE = 10
HIST_PER_OCTAVE = 16

KINDS = 8
WRITE_FAULTS, FIRST_TOUCH, WRITE_PROTECT, COW, MKWRITE, HUGE = range(6)
KIND_NAMES = ("write", "first_touch", "write_protect", "cow", "mkwrite", "huge")

TLB_REASONS = 8
RANGES = 4096
CHOSEN = 64
TLB_MM_RANGE, TLB_BATCH = 6, 7
TLB_REASON_NAMES = (
    "task_switch",
    "remote_shootdown",
    "local_shootdown",
    "local_mm_shootdown",
    "remote_send_ipi",
    "remote_wrong_cpu",
    "flush_tlb_mm_range",
    "arch_tlbbatch_flush",
)

BOUNDS = np.dtype([("start", "<u8"), ("end", "<u8")])
CONFIG = np.dtype(
    [
        ("epoch", "<u8"),
        ("follow_fork", "<u8"),
        ("arm_pid", "<u8"),
        ("near", "<u8", (NEAR,)),
        ("changes", "<u8"),
        ("used", "<u8", (2,)),
        ("arming", "<u8"),
        ("arm_writes", "<u8", (2,)),
        ("chosen_count", "<u8"),
        ("chosen", BOUNDS, (CHOSEN,)),
    ]
)
ROW = np.dtype([("key", "<u8"), ("bits", "<u8", (8,))])
TARGET = np.dtype([("space", "<u4"), ("slot", "<u4")])
ARM_WRITE = np.dtype([("ns", "<u8"), ("page", "<u8")])
TLB_COUNTS = ("flushes", "pages", "full_flushes", "ns", "ranges", "cpus")
TLB = np.dtype([(name, "<u8") for name in TLB_COUNTS])
STATS = np.dtype(
    [
        ("ref_ns", "<u8"),
        ("arm_writes_until", "<u8"),
        ("kinds", "<u8", (KINDS,)),
        ("pages", "<u8"),
        ("lost", "<u8"),
        ("lost_events", "<u8"),
        ("hist", "<u8", (HIST,)),
        ("tlb", TLB, (TLB_REASONS,)),
        ("arm_tlb", TLB, (TLB_REASONS,)),
    ]
)
COUNTS = np.dtype(
    [
        ("write_faults", "<u8"),
        ("first_touch", "<u8"),
        ("cow", "<u8"),
        ("mkwrite", "<u8"),
        ("flushes_here", "<u8"),
        ("flushes_asked", "<u8"),
    ]
)
EVENT = np.dtype(
    [
        ("ns", "<u8"),
        ("address", "<u8"),
        ("ip", "<u8"),
        ("space", "<u4"),
        ("tid", "<u4"),
        ("stack", "<i4"),
        ("kind", "<u4"),
    ]
)
RANGE = np.dtype([("start", "<u8"), ("space", "<u4"), ("epoch", "<u4")])
STACK_KEY = np.dtype([("space", "<u4"), ("stack", "<i4")])


def tgid_of(space: int) -> int:
    """Return the process that an address space belongs to."""
    return space & ((1 << TGID_BITS) - 1)


def hist_edges_ns() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return (HIST,) the upper edge of each histogram slot, in ns since the arm."""
    slot = np.arange(HIST, dtype=np.float64)
    octave = np.floor((slot - 1) / HIST_PER_OCTAVE)
    step = (slot - 1) - octave * HIST_PER_OCTAVE + 1
    edges: np.ndarray[tuple[int], np.dtype[np.float64]] = 2.0 ** (HIST_FIRST_OCTAVE + octave) * (
        1 + step / HIST_PER_OCTAVE
    )
    edges[0] = 2.0**HIST_FIRST_OCTAVE
    return edges
