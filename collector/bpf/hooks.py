"""Hooks: which BPF program is attached where, for each kind of probe.

Static functions of the kernel may be inlined or renamed, so only the first hook of each kind is
required; the others add detail, and a column they feed stays empty without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MUST = "write_faults"
"""Name of the hook without which nothing can be traced."""

_FENTRY = (
    # name, functions to try in turn, on entry, on exit
    (MUST, ("handle_mm_fault",), True, False),
    ("write_protect", ("do_wp_page",), True, False),
    ("cow", ("wp_page_copy",), True, False),
    ("mkwrite", ("do_page_mkwrite",), True, False),
    ("huge", ("do_huge_pmd_anonymous_page",), False, True),
    ("huge_wp", ("do_huge_pmd_wp_page",), False, True),
    ("tlb_time", ("flush_tlb_mm_range",), True, True),
    ("tlb_batch_time", ("arch_tlbbatch_flush",), True, True),
)
_KPROBE = (
    # name, kernel function, entry program, return program
    (MUST, "handle_mm_fault", "kp_handle_mm_fault", None),
    ("write_protect", "do_wp_page", "kp_do_wp_page", None),
    ("cow", "wp_page_copy", "kp_wp_page_copy", None),
    ("mkwrite", "do_page_mkwrite", "kp_do_page_mkwrite", None),
    ("huge", "do_huge_pmd_anonymous_page", "kp_huge_entry", "kp_huge_return"),
    ("huge_wp", "do_huge_pmd_wp_page", "kp_huge_entry", "kp_huge_return"),
    ("collapse", "pmdp_collapse_flush", "kp_collapse", None),
    ("opened", "change_protection", "kp_change_protection", None),
    ("tlb_time", "flush_tlb_mm_range", "kp_flush_range", "kp_flush_return"),
    ("tlb_batch_time", "arch_tlbbatch_flush", "kp_batch", "kp_flush_return"),
)
# what requests a flush of other CPUs, and what carries it out there: since Linux 5.13, and before
_SHOOTDOWN = (
    ("native_flush_tlb_multi", "flush_tlb_func"),
    ("native_flush_tlb_others", "flush_tlb_func_remote"),
)
# kprobes that are also used with fentry, which refuses functions that take or return a structure by value, as
# do_huge_pmd_wp_page does in 5.10 and pmdp_collapse_flush everywhere
_KPROBE_WITH_FENTRY = ("huge", "huge_wp", "collapse", "opened")
# Parts of names of programs: if a run of one is skipped, a write is missing in the log.
_LOG = ("handle_mm_fault", "tp_fault_", "huge", "collapse", "change_protection")
_LIFE = (
    (b"sched_process_fork", b"tp_fork"),
    (b"sched_process_exec", b"tp_exec"),
    (b"sched_process_exit", b"tp_exit"),
)


def symbol(name: str, symbols: frozenset[str]) -> str:
    """Return the compiler's name of a function: static ones may carry .isra.0 or .constprop.0."""
    if name in symbols:
        return name
    variants = sorted(s for s in symbols if s.startswith((f"{name}.isra.", f"{name}.constprop.")))
    return variants[0] if variants else name


def kernel_functions() -> frozenset[str]:
    """Return the names of the kernel's functions (kallsyms); empty if it may not be read."""
    try:
        text = Path("/proc/kallsyms").read_text()
    except OSError:
        return frozenset()
    return frozenset(line.split()[2] for line in text.splitlines() if line[17:18] in "tT")


def attach(bpf: Any, probe: str) -> frozenset[str]:
    """Attach the hooks of one kind of probe; return the names of those that the kernel accepted.

    Raises:
        Exception: Whatever BCC raises when the required hook is refused.
    """
    attached: set[str] = set()
    symbols: frozenset[str] = frozenset()
    for tracepoint, program_name in _LIFE:
        bpf.attach_raw_tracepoint(tp=tracepoint, fn_name=program_name)
    if probe == "tracepoint":
        bpf.attach_raw_tracepoint(tp=b"page_fault_user", fn_name=b"tp_fault_user")
        bpf.attach_raw_tracepoint(tp=b"page_fault_kernel", fn_name=b"tp_fault_kernel")
        attached |= {MUST, "first_touch", "write_protect"}
    elif probe == "fentry":
        for hook, functions, entry, leave in _FENTRY:
            if _attach_fentry(bpf, hook, functions, entry, leave):
                attached.add(hook)
    if probe in ("fentry", "kprobe"):
        symbols = kernel_functions()
        for hook, function, program, on_return in _KPROBE:
            if hook in attached or (probe == "fentry" and hook not in _KPROBE_WITH_FENTRY):
                continue
            if _attach_kprobe(bpf, hook, symbol(function, symbols), program, on_return):
                attached.add(hook)
    if "tlb_time" in attached and _attach_shootdown(bpf, probe, symbols):
        attached.add("tlb_cpus")
    try:
        bpf.attach_raw_tracepoint(tp=b"tlb_flush", fn_name=b"tp_tlb_flush")
        attached.add("tlb")
    except Exception:
        pass  # x86 only: the tlb columns stay empty
    return frozenset(attached)


def log_programs(bpf: Any) -> list[int]:
    """Return the descriptors of the loaded programs that put pages into the log."""
    return [f.fd for name, f in bpf.funcs.items() if any(part in name.decode() for part in _LOG)]


def _attach_fentry(
    bpf: Any, hook: str, functions: tuple[str, ...], entry: bool, leave: bool
) -> bool:
    for function in functions:
        try:
            # The exit first: an entry without its exit would leave calls that never end.
            if leave:
                bpf.attach_kretfunc(fn_name=function.encode())
            if entry:
                bpf.attach_kfunc(fn_name=function.encode())
        except Exception:
            if hook == MUST:
                raise
        else:
            return True
    return False


def _attach_kprobe(bpf: Any, hook: str, function: str, program: str, on_return: str | None) -> bool:
    try:
        if on_return:
            bpf.attach_kretprobe(event=function.encode(), fn_name=on_return.encode())
        bpf.attach_kprobe(event=function.encode(), fn_name=program.encode())
    except Exception:
        if hook == MUST:
            raise
        return False
    return True


def _attach_shootdown(bpf: Any, probe: str, symbols: frozenset[str]) -> bool:
    """Attach what counts the CPUs that a flush interrupts.

    Both ends are attached or neither, so that without them a column is empty and not 0.
    """
    for requester, responder in _SHOOTDOWN:
        if probe == "fentry":
            # The responding end first: alone it counts nothing.
            done = all(_attach_fentry(bpf, "", (f,), True, False) for f in (responder, requester))
        else:
            done = all(
                _attach_kprobe(bpf, "", symbol(f, symbols), program, None)
                for f, program in ((responder, "kp_flush_answers"), (requester, "kp_flush_asks"))
            )
        if done:
            return True
    return False
