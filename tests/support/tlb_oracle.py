"""TLB flushes as the kernel itself reports them, read by none of the code under test: the count of
interrupts, and the tracepoint tlb:tlb_flush through tracefs.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
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
_EVENT = re.compile(
    r"^.*-(?P<tid>\d+)\s+\[(?P<cpu>\d+)\].* tlb_flush: pages:\s?(?P<pages>-?\d+) "
    r"reason:.*\((?P<reason>\d+)\)$"
)
_ENTRY = re.compile(r"^.*-(?P<tid>\d+)\s+\[\d+\].*: (?P<name>sys_enter|page_fault_(user|kernel)): ")
# By event, with what is filtered out: sched_yield, by which threads wait for each other.
_ENTRIES = {
    "raw_syscalls/sys_enter": "&&id!=24",
    "exceptions/page_fault_user": "",
    "exceptions/page_fault_kernel": "",
}


def interrupts() -> list[int]:
    """Return, by processor, how often another one has asked it to flush since boot."""
    text = Path("/proc/interrupts").read_text(encoding="ascii")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("TLB:"))
    return [int(word) for word in line.split()[1:] if word.isdigit()]


def ceiling() -> int:
    """Return the number of pages above which the kernel flushes everything instead of a range."""
    try:
        return int(CEILING.read_text())
    except OSError:
        return 33  # arch/x86/mm/tlb.c, from 3.15 on


@dataclass(frozen=True)
class Flush:
    """A flush event.

    Attributes:
        tid: the thread that ran.
        cpu: the processor.
        pages: -1 for everything, 0 for none: nothing was left to do.
        reason: enum tlb_flush_reason.
        fault: a page fault asked for it, where faults of the thread are traced.
    """

    tid: int
    cpu: int
    pages: int
    reason: int
    fault: bool = False


def parse(text: str) -> list[Flush]:
    """Return the flushes in a tracefs `trace` file.

    A flush is attributed to what its thread did last before it, a system call or a fault.

    Raises: ValueError when the kernel had to overwrite some events.
    """
    kept = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text)
    if not kept or kept[1] != kept[2]:
        raise ValueError(f"the trace lacks events: {kept and kept[0]}")
    found: list[Flush] = []
    faults: dict[int, bool] = {}  # by thread: whether it entered the kernel by one
    for line in map(str.rstrip, text.splitlines()):
        if match := _EVENT.match(line):
            tid, cpu, pages, reason = (int(match[n]) for n in ("tid", "cpu", "pages", "reason"))
            found.append(Flush(tid, cpu, pages, reason, faults.get(tid, False)))
        elif match := _ENTRY.match(line):
            faults[int(match["tid"])] = match["name"] != "sys_enter"
        elif "tlb_flush:" in line:
            raise ValueError(f"unexpected line of tracefs: {line!r}")
    return found


@contextlib.contextmanager
def tracefs() -> Iterator[Path]:
    """Yield the mount point of tracefs; mount it for a while in a temporary directory if needed."""
    if (TRACEFS / "events").is_dir():
        yield TRACEFS
        return
    with tempfile.TemporaryDirectory(prefix="redirty-tracefs.") as name:
        mount = ["mount", "-t", "tracefs", "tracefs", name]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        require(done.returncode == 0, f"needs tracefs: {done.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


@contextlib.contextmanager
def traced(tids: set[int]) -> Iterator[Callable[[], list[Flush]]]:
    """Trace every flush of the machine except at context switches; yield a function that reads them.

    Of `tids` it also traces whether a fault asked for the flush. (A stack would tell, too, but for a
    kretprobe on the way, beyond which Linux before 5.15 does not see.)
    """
    with tracefs() as root:
        require((root / "events/tlb/tlb_flush").is_dir(), "needs the tracepoint tlb_flush")
        instance = root / "instances" / f"redirty-test-{os.getpid()}"
        instance.mkdir()
        try:
            # To record threads' names the kernel would trace every context switch.
            (instance / "trace_options").write_text("norecord-cmd")
            chosen = "||".join(f"common_pid=={tid}" for tid in sorted(tids))
            for name, but in _ENTRIES.items():
                (instance / "events" / name / "filter").write_text(f"({chosen}){but}")
            # Context switches are most of all on a busy machine, and not requested by any thread.
            (instance / "events/tlb/tlb_flush/filter").write_text("reason!=0")
            events = [
                instance / "events" / name / "enable" for name in (*_ENTRIES, "tlb/tlb_flush")
            ]
            try:
                for event in events:
                    event.write_text("1")
                yield lambda: parse((instance / "trace").read_text(errors="replace"))
            finally:
                for event in events:
                    event.write_text("0")
        finally:
            instance.rmdir()


def by_reason(flushes: list[Flush], tids: set[int]) -> Counter[int]:
    """Return how many flushes have each reason, of those that flushed anything while one of the threads ran."""
    return Counter(flush.reason for flush in flushes if flush.tid in tids and flush.pages)
