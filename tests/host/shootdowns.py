"""The kernel's own word on flushes of the TLB, by nothing of the program tested: the count of interrupts,
and the tracepoint tlb:tlb_flush through tracefs."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.tiers import require

TRACEFS = Path("/sys/kernel/tracing")
CEILING = Path("/sys/kernel/debug/x86/tlb_single_page_flush_ceiling")
# enum tlb_flush_reason of the kernel's include/linux/mm_types.h
REMOTE_SHOOTDOWN, LOCAL_SHOOTDOWN, LOCAL_MM_SHOOTDOWN, REMOTE_SEND_IPI, REMOTE_WRONG_CPU = range(
    1, 6
)
_EVENT = re.compile(
    r"^.*-(?P<tid>\d+)\s+\[(?P<cpu>\d+)\].* tlb_flush: pages:\s?(?P<pages>-?\d+) "
    r"reason:.*\((?P<reason>\d+)\)$"
)
_STACK = re.compile(r"^.*-(?P<tid>\d+)\s+\[(?P<cpu>\d+)\].*: <stack trace>$")
_FAULT = " => handle_mm_fault"


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
    """One event. tid: who ran there; pages: -1 for everything. fault: a page fault asked for it."""

    tid: int
    cpu: int
    pages: int
    reason: int
    fault: bool = False


def parse(text: str) -> list[Flush]:
    """The events of a tracefs `trace` file, with the stack that may follow each.

    Errors: ValueError when the kernel had to overwrite some.
    """
    kept = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text)
    if not kept or kept[1] != kept[2]:
        raise ValueError(f"not all that happened is in the trace: {kept and kept[0]}")
    found: list[Flush] = []
    last: dict[tuple[int, int], int] = {}  # by thread and processor: the events of two may mix
    at = None
    for line in map(str.rstrip, text.splitlines()):
        if match := _EVENT.match(line):
            tid, cpu, pages, reason = (int(match[n]) for n in ("tid", "cpu", "pages", "reason"))
            last[tid, cpu] = len(found)
            found.append(Flush(tid, cpu, pages, reason))
        elif match := _STACK.match(line):
            at = last[int(match["tid"]), int(match["cpu"])]
        elif line == _FAULT and at is not None:
            found[at] = replace(found[at], fault=True)
        elif "tlb_flush:" in line:
            raise ValueError(f"not as tracefs writes it: {line!r}")
    return found


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], list[Flush]]]:
    """Every flush of the machine, from now on, and whether it is a fault's; what it gives reads what
    happened so far."""
    require(
        (TRACEFS / "events/tlb/tlb_flush").is_dir(), "needs tracefs with the tracepoint tlb_flush"
    )
    instance = TRACEFS / "instances" / f"redirty-test-{os.getpid()}"
    instance.mkdir()
    try:
        (instance / "options/stacktrace").write_text("1")
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
