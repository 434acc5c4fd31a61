"""Write faults and TLB flushes of all processes, counted in the kernel.

Nothing is armed and no process is touched. The programs are bound to descriptors of this process,
like everything that redirty attaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redirty.bpfprogs as programs
from redirty.collector.bpf import abi, btf, hooks, probe_support, syscalls
from redirty.collector.bpf.loader import BpfError, compile_programs
from redirty.collector.errors import RedirtyError

MAX_PROCESSES = 32768
_BATCH = 4096
# hooks for kinds of fault that tracepoints do not report, and the kernel functions they are on
_MORE = (("cow", "wp_page_copy"), ("mkwrite", "do_page_mkwrite"))


@dataclass(frozen=True, eq=False)
class CountsByProcess:
    """Counts since the start, in no order.

    Attributes:
        pid: (n,) processes.
        counts: (n,) abi.COUNTS.
        lost: Faults and flushes of processes for which there was no room.
    """

    pid: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.void]
    lost: int


class SystemCounts:
    """The counting programs, loaded and attached.

    Attributes:
        hooks: Those of `first_touch`, `cow`, `mkwrite` and `tlb` that this kernel reports.

    Raises:
        RedirtyError: Faults cannot be counted at all; the message has the reasons.
    """

    def __init__(self) -> None:
        self._bpf, self.hooks = _load()
        fd = self._bpf[b"counts"].map_fd
        self._reader = syscalls.HashReader(
            fd, np.empty(_BATCH, np.uint32), np.empty(_BATCH, abi.COUNTS)
        )
        self._uncounted = self._bpf[b"uncounted"].map_fd

    def read(self) -> CountsByProcess:
        """Read the current counts."""
        pid, counts = self._reader.read()
        lost = np.zeros(1, np.uint64)
        syscalls.map_lookup(self._uncounted, np.zeros(1, np.uint32), lost)
        return CountsByProcess(pid.astype(np.uint32), counts.astype(abi.COUNTS), int(lost[0]))

    def forget(self, pid: int) -> None:
        """Remove a process that has ended, to make room."""
        syscalls.map_delete(self._reader.fd, np.array([pid], np.uint32))

    def close(self) -> None:
        """Detach everything."""
        self._bpf.cleanup()


def _load() -> tuple[Any, frozenset[str]]:
    reason = probe_support.tracepoint()
    by_kprobe = None if reason is None else probe_support.kprobe()
    if reason is not None and by_kprobe is not None:
        raise RedirtyError(
            f"cannot count write faults on this kernel: {reason}; {by_kprobe} (see: redirty check)"
        )
    flags = ["-DRD_FAULTS_KPROBE"] if reason is not None else []
    flags += [f"-DRD_PROCESSES={MAX_PROCESSES}"]
    why = ""
    for kind in _kinds_of_hooks():
        more = [f"-DRD_MORE_{kind}"] if kind else []
        try:
            bpf = compile_programs(programs.system_source(), [*flags, *more])
        except BpfError as e:
            why = str(e)
            continue
        try:
            return bpf, _attach(bpf, kind, faults_by_kprobe=reason is not None)
        except Exception as e:
            why = str(e)
            bpf.cleanup()
    raise RedirtyError(f"cannot count write faults on this kernel: {why} (see: redirty check)")


def _kinds_of_hooks() -> list[str]:
    """Return how to hook the functions of _MORE, the best first and "" (not at all) last.

    Kernels have one or the other function inlined.
    """
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


def _attach(bpf: Any, kind: str, *, faults_by_kprobe: bool) -> frozenset[str]:
    """Attach the programs; return the names of the hooks. Raises: BCC's exception if faults cannot be hooked."""
    attached = set()
    if faults_by_kprobe:
        bpf.attach_kprobe(event=b"handle_mm_fault", fn_name=b"kp_fault")
    else:
        bpf.attach_raw_tracepoint(tp=b"page_fault_user", fn_name=b"tp_fault")
        bpf.attach_raw_tracepoint(tp=b"page_fault_kernel", fn_name=b"tp_fault")
        attached.add("first_touch")
    symbols = hooks.kernel_functions() if kind == "KPROBE" else frozenset()
    for hook, function in _MORE:
        try:
            if kind == "FENTRY":
                bpf.attach_kfunc(fn_name=function.encode())
            elif kind == "KPROBE":
                name = hooks.symbol(function, symbols)
                bpf.attach_kprobe(event=name.encode(), fn_name=f"kp_{function}".encode())
            else:
                continue
        except Exception:
            continue  # inlined in this kernel: its share stays unknown
        attached.add(hook)
    try:
        bpf.attach_raw_tracepoint(tp=b"tlb_flush", fn_name=b"tp_flush")
        attached.add("tlb")
    except Exception:
        pass  # x86 only
    return frozenset(attached)
