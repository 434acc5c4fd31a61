"""Count TLB flushes while page tables move."""

from __future__ import annotations

import logging
from typing import Any

from redirty.collector.bpf import abi
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import RedirtyError
from redirty.collector.units import show_time

log = logging.getLogger(__name__)

_SLOT = 1


class Flushes:
    """TLB flushes of a process between two moments, summed over such pairs.

    counts: as abi.TLB, by what the kernel's tracepoint gives as the reason; None where no program
    can be attached.
    """

    def __init__(self, pid: int) -> None:
        self._tracer: Tracer | None = None
        try:
            self._tracer = Tracer(Options(slots=2, targets=64, regions=1024))
            self._tracer.set_target(pid, pid, _SLOT)
        except RedirtyError as e:
            log.info("TLB flushes are not counted: %s", e)
        self._sum = dict.fromkeys(("flushes", "pages", "full_flushes", "cpus", "ns"), 0)
        self._before = self._now()

    @property
    def timed(self) -> bool:
        """Whether the kernel tells how long a flush takes (kprobes or fentry)."""
        return self._tracer is not None and "tlb_time" in self._tracer.attached

    def _now(self) -> dict[str, int]:
        if self._tracer is None:
            return {}
        counts = self._tracer.tlb_counts(_SLOT)
        # asked for, and timed, where that is seen; else what the processors tell, but for switches
        # of tasks (0), which nobody asked for
        rows = counts[abi.TLB_MM_RANGE :] if self.timed else counts[1 : abi.TLB_MM_RANGE]
        return {name: int(rows[name].sum()) for name in self._sum}

    def begin(self) -> None:
        """From now on."""
        self._before = self._now()

    def end(self) -> None:
        """Until now."""
        for name, value in self._now().items():
            self._sum[name] += value - self._before[name]

    def as_json(self) -> dict[str, Any] | None:
        """For programs; time_s and cpus are None where the kernel does not tell them."""
        if self._tracer is None or "tlb" not in self._tracer.attached:
            return None
        told = self.timed
        return {
            "flushes": self._sum["flushes"],
            "pages": self._sum["pages"],
            "full_flushes": self._sum["full_flushes"],
            "other_cpus": self._sum["cpus"] if "tlb_cpus" in self._tracer.attached else None,
            "time_s": self._sum["ns"] / 1e9 if told else None,
        }

    def close(self) -> None:
        """Detaches."""
        if self._tracer is not None:
            self._tracer.close()


def flushes_text(flushes: dict[str, Any] | None) -> str:
    if flushes is None:
        return "  TLB flushes  not counted here (see: redirty check)"
    text = f"  TLB flushes  {flushes['flushes']}, {flushes['full_flushes']} of everything"
    if flushes["other_cpus"] is not None:
        text += f", other CPUs interrupted {flushes['other_cpus']} times"
    if flushes["time_s"] is not None:
        text += f", {show_time(flushes['time_s'])} in all"
    return text + " (while it stood still, and a moment before and after)"
