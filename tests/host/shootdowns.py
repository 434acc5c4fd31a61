"""The kernel's own word on flushes of the TLB, by nothing of the program tested: the count of interrupts,
and the tracepoint tlb:tlb_flush through tracefs."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.tiers import require

TRACEFS = Path("/sys/kernel/tracing")
CEILING = Path("/sys/kernel/debug/x86/tlb_single_page_flush_ceiling")
# enum tlb_flush_reason of the kernel's include/linux/mm_types.h
REMOTE_SHOOTDOWN, LOCAL_SHOOTDOWN, LOCAL_MM_SHOOTDOWN, REMOTE_SEND_IPI, REMOTE_WRONG_CPU = range(
    1, 6
)
_LINE = re.compile(
    r"^.*-(?P<tid>\d+)\s+\[(?P<cpu>\d+)\].* tlb_flush: pages:\s?(?P<pages>-?\d+) "
    r"reason:.*\((?P<reason>\d+)\)$"
)


def interrupts() -> list[int]:
    """By processor: how often another one has asked it to flush, since the machine began."""
    text = Path("/proc/interrupts").read_text(encoding="ascii")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("TLB:"))
    return [int(word) for word in line.split()[1:] if word.isdigit()]


def ceiling() -> int:
    """Ranges of more pages than this are flushed by flushing everything."""
    try:
        return int(CEILING.read_text())
    except OSError:
        return 33  # arch/x86/mm/tlb.c, from 3.15 on


@dataclass(frozen=True)
class Flush:
    """One event. tid: who ran there; pages: -1 for everything."""

    tid: int
    cpu: int
    pages: int
    reason: int


def parse(text: str) -> list[Flush]:
    """The events of a tracefs `trace` file.

    Errors: ValueError when the kernel had to overwrite some.
    """
    kept = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text)
    if not kept or kept[1] != kept[2]:
        raise ValueError(f"not all that happened is in the trace: {kept and kept[0]}")
    lines = [line for line in text.splitlines() if "tlb_flush:" in line]
    found = []
    for line in lines:
        match = _LINE.match(line.rstrip())
        if not match:
            raise ValueError(f"not as tracefs writes it: {line!r}")
        found.append(Flush(*(int(match[name]) for name in ("tid", "cpu", "pages", "reason"))))
    return found


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], list[Flush]]]:
    """Every flush of the machine, from now on; what it gives reads what happened so far."""
    require(
        (TRACEFS / "events/tlb/tlb_flush").is_dir(), "needs tracefs with the tracepoint tlb_flush"
    )
    instance = TRACEFS / "instances" / f"redirty-test-{os.getpid()}"
    instance.mkdir()
    try:
        event = instance / "events/tlb/tlb_flush/enable"
        event.write_text("1")
        try:
            yield lambda: parse((instance / "trace").read_text(errors="replace"))
        finally:
            event.write_text("0")
    finally:
        instance.rmdir()


def by_reason(flushes: list[Flush], tids: set[int]) -> Counter[int]:
    """How many of each reason, of those that happened while one of some threads ran."""
    return Counter(flush.reason for flush in flushes if flush.tid in tids)
