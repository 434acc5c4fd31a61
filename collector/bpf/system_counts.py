"""Write faults and TLB flushes of all processes, counted in the kernel: nothing is armed, no process is
touched. Hangs on descriptors of this process, as all that redirty attaches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redirty.bpfprogs as programs
from redirty.collector.bpf import abi, btf, hooks, probe_support, syscalls
from redirty.collector.bpf.loader import bcc_compiler, captured_stderr, last_line
from redirty.collector.errors import RedirtyError

log = logging.getLogger(__name__)

ROOM = 32768  # processes
_BATCH = 4096
_MORE = (("cow", "wp_page_copy"), ("mkwrite", "do_page_mkwrite"))


@dataclass(frozen=True, eq=False)
class CountsByProcess:
    """Since the counts began: pid (n,), counts (n,) abi.COUNTS, in no order. lost: faults and flushes of
    processes that found no room."""

    pid: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.void]
    lost: int


class SystemCounts:
    """features: of `first_touch`, `cow`, `mkwrite` and `tlb` what this kernel tells.

    Errors: RedirtyError with the reasons when faults cannot be seen at all.
    """

    def __init__(self) -> None:
        self._bpf, self.features = _load()
        fd = self._bpf[b"counts"].map_fd
        self._reader = syscalls.HashReader(
            fd, np.empty(_BATCH, np.uint32), np.empty(_BATCH, abi.COUNTS)
        )
        self._uncounted = self._bpf[b"uncounted"].map_fd

    def read(self) -> CountsByProcess:
        """As they are now."""
        pid, counts = self._reader.read()
        lost = np.zeros(1, np.uint64)
        syscalls.map_lookup(self._uncounted, np.zeros(1, np.uint32), lost)
        return CountsByProcess(pid.astype(np.uint32), counts.astype(abi.COUNTS), int(lost[0]))

    def forget(self, pid: int) -> None:
        """One that has ended: makes room."""
        syscalls.map_delete(self._reader.fd, np.array([pid], np.uint32))

    def close(self) -> None:
        """Detaches everything."""
        self._bpf.cleanup()


def _load() -> tuple[Any, frozenset[str]]:
    reason = probe_support.tracepoint()
    by_kprobe = None if reason is None else probe_support.kprobe()
    if reason is not None and by_kprobe is not None:
        raise RedirtyError(
            f"cannot count write faults on this kernel: {reason}; {by_kprobe} (see: redirty check)"
        )
    flags = ["-DRD_FAULTS_KPROBE"] if reason is not None else []
    said = ""
    for kind in _ways_to_more():
        bpf, said = _compiled([*flags, *([f"-DRD_MORE_{kind}"] if kind else [])])
        if bpf is None:
            continue
        try:
            return bpf, _attached(bpf, kind, faults_by_kprobe=bool(flags))
        except Exception as e:
            said = str(e)
            bpf.cleanup()
    raise RedirtyError(f"cannot count write faults on this kernel: {said} (see: redirty check)")


def _ways_to_more() -> list[str]:
    """In which ways to count the kinds of fault that tracepoints do not tell, the best first; at last by
    none. Kernels have one or the other function inlined."""
    types, found = btf.load(), []
    if any(probe_support.fentry(types, function) is None for _, function in _MORE):
        found.append("FENTRY")
    if probe_support.kprobe() is None:
        symbols = hooks.kernel_functions()
        if any(
            probe_support.kprobe(hooks.symbol(function, symbols)) is None for _, function in _MORE
        ):
            found.append("KPROBE")
    return [*found, ""]


def _compiled(flags: list[str]) -> tuple[Any, str]:
    """(bpf, "") or (None, why not)."""
    compiler = bcc_compiler()
    common = [f"-I{programs.DIRECTORY}", "-Wno-unused-function", f"-DRD_PROCESSES={ROOM}"]
    with captured_stderr() as said:
        try:
            return compiler(text=programs.system_source().encode(), cflags=[*common, *flags]), ""
        except Exception as e:
            reason = str(e).strip()
    log.debug("BCC said: %s", said.text)
    return None, f"{reason} ({last_line(said.text)})"


def _attached(bpf: Any, more: str, *, faults_by_kprobe: bool) -> frozenset[str]:
    """Errors: whatever BCC raises when faults cannot be seen."""
    features = set()
    if faults_by_kprobe:
        bpf.attach_kprobe(event=b"handle_mm_fault", fn_name=b"kp_fault")
    else:
        bpf.attach_raw_tracepoint(tp=b"page_fault_user", fn_name=b"tp_fault")
        bpf.attach_raw_tracepoint(tp=b"page_fault_kernel", fn_name=b"tp_fault")
        features.add("first_touch")
    symbols = hooks.kernel_functions() if more == "KPROBE" else frozenset()
    for feature, function in _MORE:
        try:
            if more == "FENTRY":
                bpf.attach_kfunc(fn_name=function.encode())
            elif more == "KPROBE":
                name = hooks.symbol(function, symbols)
                bpf.attach_kprobe(event=name.encode(), fn_name=f"kp_{function}".encode())
            else:
                continue
        except Exception:
            continue  # inlined in this kernel: the share stays unknown
        features.add(feature)
    try:
        bpf.attach_raw_tracepoint(tp=b"tlb_flush", fn_name=b"tp_flush")
        features.add("tlb")
    except Exception:
        pass  # x86 only
    return frozenset(features)
