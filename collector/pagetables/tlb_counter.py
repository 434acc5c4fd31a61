"""Counts TLB flushes while page tables are moved."""

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
    """TLB flushes of a process between start() and stop(), summed over all such periods.

    Nothing is counted where no program can be attached.
    """

    def __init__(self, pid: int) -> None:
        self._tracer: Tracer | None = None
        try:
            self._tracer = Tracer(Options(slots=2, targets=64, regions=1024))
            self._tracer.set_target(pid, pid, _SLOT)
        except RedirtyError as e:
            log.info("TLB flushes are not counted: %s", e)
        self._sum = dict.fromkeys(("flushes", "pages", "full_flushes", "cpus", "ns"), 0)
        self._before = self._read()

    @property
    def timed(self) -> bool:
        """True if it is known how long flushes take (with kprobes or fentry)."""
        return self._tracer is not None and "tlb_time" in self._tracer.hooks

    def _read(self) -> dict[str, int]:
        if self._tracer is None:
            return {}
        counts = self._tracer.tlb_counts(_SLOT)
        # requested and timed flushes if known; else what the processors report, without those at
        # a context switch (reason 0), which nobody requested
        rows = counts[abi.TLB_MM_RANGE :] if self.timed else counts[1 : abi.TLB_MM_RANGE]
        return {name: int(rows[name].sum()) for name in self._sum}

    def start(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def stop(self) -> None:
        """Add what was counted since start()."""
        for name, value in self._read().items():
            self._sum[name] += value - self._before[name]

    def as_json(self) -> dict[str, Any] | None:
        """Return the sums as a JSON-serializable dict; None if flushes are not counted.

        time_s and other_cpus are None where unknown.
        """
        if self._tracer is None or "tlb" not in self._tracer.hooks:
            return None
        return {
            "flushes": self._sum["flushes"],
            "pages": self._sum["pages"],
            "full_flushes": self._sum["full_flushes"],
            "other_cpus": self._sum["cpus"] if "tlb_cpus" in self._tracer.hooks else None,
            "time_s": self._sum["ns"] / 1e9 if self.timed else None,
        }

    def close(self) -> None:
        """Detach the programs; the sums stay."""
        if self._tracer is not None:
            self._tracer.close()


def flushes_text(flushes: dict[str, Any] | None) -> str:
    """Format the sums for people."""
    if flushes is None:
        return "  TLB flushes  not counted here (see: redirty check)"
    text = f"  TLB flushes  {flushes['flushes']}, {flushes['full_flushes']} full"
    if flushes["other_cpus"] is not None:
        text += f", other CPUs interrupted {flushes['other_cpus']} times"
    if flushes["time_s"] is not None:
        text += f", {show_time(flushes['time_s'])} in all"
    return text + " (during the downtime, and just before and after)"
