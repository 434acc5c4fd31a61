"""Tests which kinds of probe work, by loading a program that does nothing; never by version.

Each check returns None if the probe works, else the reason in terms that an administrator knows.
"""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path

from redirty.collector.bpf import btf as btf_module
from redirty.collector.bpf import syscalls
from redirty.collector.errors import why
from redirty.collector.linux import capabilities

KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
LOCKDOWN = Path("/sys/kernel/security/lockdown")

SCHED_PREEMPT = Path("/sys/kernel/debug/sched/preempt")

PROBES = ("fentry", "kprobe", "tracepoint")


def preference() -> tuple[str, ...]:
    """Return PROBES, the best first.

    fentry is the cheapest. But where the kernel may preempt it, all faults on that processor are
    skipped until it continues (Tracer.skipped); a kprobe runs without interruption.
    """
    return ("kprobe", "fentry", "tracepoint") if preempts() else PROBES


def preempts() -> bool:
    """Return whether this kernel preempts its own work, and so a program on function entry.

    True with preempt=full and preempt=lazy (from Linux 7.0 on the minimum on x86), with PREEMPT_RT, and if
    the model is unknown.
    """
    models = {word for word in platform.version().split() if word.startswith("PREEMPT")}
    if models != {"PREEMPT_DYNAMIC"}:
        return bool(models)
    try:
        text = SCHED_PREEMPT.read_text()
    except OSError:  # debugfs is not mounted, or closed by lockdown
        return True
    return text[text.find("(") + 1 : text.find(")")] not in ("none", "voluntary")


def lockdown_mode() -> str:
    """Return the kernel lockdown mode in force: none, integrity, confidentiality, or unknown."""
    try:
        text = LOCKDOWN.read_text()
    except OSError:
        return "unknown"
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else "unknown"


def _not_permitted(what: str) -> str:
    if os.geteuid() != 0:
        return f"{what} needs root (or CAP_BPF with CAP_PERFMON): run with sudo"
    lacking = capabilities.root_lacks(capabilities.TRACING)
    if lacking:
        return f"{what} needs {lacking}"
    mode = lockdown_mode()
    if mode in ("integrity", "confidentiality"):
        return f"the kernel refuses {what}: it is locked down ({mode} mode)"
    return f"the kernel refuses {what} (lockdown or a hardened kernel)"


def _reason(what: str, error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return _not_permitted(what)
    if error.errno == errno.EINVAL:
        return f"the kernel does not know {what} in the requested form (EINVAL)"
    return f"{what}: {why(error)}"


def _reading() -> str | None:
    """Check BPF that reads kernel memory, which every program of redirty does.

    A locked down kernel loads and attaches programs that do nothing, and refuses only this.
    """
    try:
        os.close(syscalls.load_reader())
    except OSError as e:
        mode = lockdown_mode()
        if mode == "confidentiality":
            return (
                "the kernel does not let BPF read its memory: it is locked down "
                "(confidentiality mode)"
            )
        return _reason("BPF that reads kernel memory", e)
    return None


def tracepoint(name: str = "page_fault_user") -> str | None:
    """Check BPF on the page-fault tracepoints."""
    try:
        program = syscalls.load_noop(syscalls.TYPE_RAW_TRACEPOINT)
    except OSError as e:
        return _reason("BPF on tracepoints", e)
    try:
        os.close(syscalls.open_raw_tracepoint(program, name))
    except FileNotFoundError:
        return f"the kernel has no tracepoint {name} (it exists on x86 only)"
    except OSError as e:
        return _reason(f"BPF on the tracepoint {name}", e)
    finally:
        os.close(program)
    return _reading()


def kprobe(function: str = "handle_mm_fault") -> str | None:
    """Check BPF on kprobes."""
    try:
        pmu = int(KPROBE_PMU.read_text())
    except OSError:
        return "the kernel was built without kprobes (CONFIG_KPROBES or CONFIG_KPROBE_EVENTS)"
    try:
        os.close(syscalls.load_noop(syscalls.TYPE_KPROBE))
        os.close(syscalls.open_kprobe(pmu, function))
    except OSError as e:
        return _reason("BPF on kprobes", e)
    return _reading()


def fentry(btf: btf_module.Btf | None, function: str = "handle_mm_fault") -> str | None:
    """Check BPF on function entry and exit (fentry, fexit)."""
    if btf is None:
        return "the kernel has no type information (CONFIG_DEBUG_INFO_BTF)"
    btf_id = btf.function_id(function)
    if btf_id is None:
        return f"the kernel's type information does not list {function}"
    try:
        program = syscalls.load_noop(syscalls.TYPE_TRACING, syscalls.TRACE_FENTRY, btf_id)
    except OSError as e:
        return _reason("BPF on function entry (fentry)", e)
    try:
        os.close(syscalls.open_raw_tracepoint(program, None))
    except OSError as e:
        if e.errno in (errno.EBUSY, 524):  # ENOTSUPP: no ftrace on this function
            return "the kernel was built without the function tracer that fentry needs"
        return _reason("BPF on function entry (fentry)", e)
    finally:
        os.close(program)
    return _reading()


def try_all(btf: btf_module.Btf | None) -> dict[str, str | None]:
    """Check every kind of probe; return name -> reason, or None, in order of preference."""
    answers = {"fentry": fentry(btf), "kprobe": kprobe(), "tracepoint": tracepoint()}
    return {probe: answers[probe] for probe in preference()}


def bcc() -> str | None:
    """Check that BCC is installed."""
    try:
        import bcc as module
    except ImportError:
        return "BCC is missing: install Debian's package python3-bpfcc (not bcc of PyPI)"
    if not hasattr(module, "BPF"):
        return (
            "the module bcc found is not the BPF Compiler Collection: remove the PyPI package bcc"
        )
    return None
