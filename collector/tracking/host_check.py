"""Feature tests of this machine for redirty check: each feature is tried, not derived from a version."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

from redirty.collector.arming import methods
from redirty.collector.bpf import btf, probe_support
from redirty.collector.errors import RedirtyError
from redirty.collector.linux import privileges
from redirty.collector.ptrace.injector_client import Injector


@dataclass(frozen=True)
class HostSupport:
    """Support for tracing on this machine.

    Attributes:
        kernel: release of the kernel.
        lockdown: its lockdown mode.
        root: whether this process is root's.
        probes, arming, other: by name, None when it works, else the reason.
    """

    kernel: str
    lockdown: str
    root: bool
    probes: dict[str, str | None]
    arming: dict[str, str | None]
    other: dict[str, str | None]

    @property
    def probe(self) -> str | None:
        """The kind of probe that --probe auto uses; None when there is none."""
        return next((p for p, reason in self.probes.items() if reason is None), None)

    @property
    def arm(self) -> str | None:
        """The method that --arm auto uses; None when there is none."""
        return next((a for a, reason in self.arming.items() if reason is None), None)

    @property
    def ok(self) -> bool:
        """Whether tracing is possible at all."""
        needed = ("bcc", "btf", "pid namespace")
        return bool(self.probe and self.arm) and all(self.other[n] is None for n in needed)


def _process_events() -> str | None:
    from redirty.collector.net.procevents import ProcessEvents

    try:
        ProcessEvents().close()
    except RedirtyError as e:
        return str(e)
    return None


def probe_host() -> HostSupport:
    """Try everything. Takes about a second."""
    root = os.geteuid() == 0
    try:
        types: btf.Btf | None = btf.load()
        btf_reason = None
    except RedirtyError as e:
        types, btf_reason = None, str(e)
    injector = Injector()
    try:
        if root:
            arming = {m: methods.round_trip(m, injector) for m in methods.METHODS}
        else:
            arming = dict.fromkeys(methods.METHODS, "needs root: run with sudo")
    finally:
        injector.close()
    other = {
        "bcc": probe_support.bcc(),
        "btf": btf_reason,
        "pid namespace": privileges.pid_namespace(),
    }
    other["process events"] = _process_events() if root else "needs root: run with sudo"
    return HostSupport(
        kernel=platform.release(),
        lockdown=probe_support.lockdown_mode(),
        root=root,
        probes=probe_support.try_all(types),
        arming=arming,
        other=other,
    )


def as_json(found: HostSupport) -> dict[str, Any]:
    """Return a JSON-serializable dict."""

    def section(answers: dict[str, str | None]) -> dict[str, dict[str, Any]]:
        return {name: {"ok": reason is None, "reason": reason} for name, reason in answers.items()}

    return {
        "ok": found.ok,
        "kernel": found.kernel,
        "lockdown": found.lockdown,
        "root": found.root,
        "probes": section(found.probes),
        "arming": section(found.arming),
        "other": section(found.other),
        "auto": {"probe": found.probe, "arm": found.arm},
    }


_MEANING = {
    "fentry": "function entry and exit probes: the cheapest, see every write fault",
    "kprobe": "kernel probes: see every write fault, and cannot be preempted",
    "tracepoint": "page-fault tracepoints: see the processor's faults only",
    "uffd": "userfaultfd, asynchronous write-protection: read and cleared in one step",
    "soft-dirty": "soft-dirty bits (clear_refs)",
    "bcc": "BPF Compiler Collection",
    "btf": "the kernel's type information",
    "pid namespace": "process IDs are those of the initial namespace",
    "process events": "proc connector: names of short-lived children",
}


_NOTICED = {
    "uffd": (
        "uffd stops one thread of each target once, for a millisecond or two. System calls go on or begin again, but a",
        "recv with MSG_WAITALL may return a part; the target's own UFFDIO_REGISTER gets EBUSY while it is armed.",
    ),
    "soft-dirty": (
        "soft-dirty clears bits that others use, too: an incremental dump of the target by CRIU is wrong until its",
        "next full one.",
    ),
}


def as_text(found: HostSupport) -> str:
    """Return the answers as lines for people."""
    lines = [
        f"kernel {found.kernel}, lockdown: {found.lockdown}, "
        f"{'root' if found.root else 'not root'}",
        "",
    ]
    for title, answers, auto in (
        ("tracing (--probe)", found.probes, found.probe),
        ("arming (--arm)", found.arming, found.arm),
        ("other", found.other, None),
    ):
        lines.append(title)
        for name, reason in answers.items():
            mark = "yes" if reason is None else "no "
            chosen = "   <- auto" if name == auto else ""
            lines.append(f"  {mark}  {name:<15} {reason or _MEANING.get(name, '')}{chosen}")
        if answers is found.arming and found.arm is not None:
            lines += ["", *(f"  {line}" for line in _NOTICED[found.arm])]
        lines.append("")
    if found.ok:
        lines.append(f"tracing is possible: auto uses --probe {found.probe} --arm {found.arm}")
    else:
        lines.append("tracing is not possible here: the lines with 'no' say why")
    return "\n".join(lines) + "\n"
