"""The fixed part of a stop: what stopping a target takes in addition to sending what is left.

A boundary of a recording takes what the stop of a mirror takes to arm and to find what was written. How long
that is depends on what else the machine does at that moment, so no single boundary counts, and no mean: the
lower quartile is what most boundaries need, and the interval has those of quiet and of busy moments. While the
target is stopped it takes no processor: a boundary of a target that keeps them busy may then take half the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LOW, _USUAL, _HIGH = 0.1, 0.25, 0.9  # quantiles
_ALONE = 0.5
_LATEST = 64  # boundaries


@dataclass(frozen=True)
class StopCost:
    """The fixed part of a stop, in seconds.

    Attributes:
        usual_s: what counts.
        low_s, high_s: in quiet and in busy moments.
        boundaries: number of boundaries that it was measured at; 0: it was given, or is not known.
    """

    usual_s: float = 0.0
    low_s: float = 0.0
    high_s: float = 0.0
    boundaries: int = 0


@dataclass(frozen=True)
class StopSteps:
    """Times in seconds of a stop in addition to copying, measured by stopping the target.

    Attributes:
        freeze_s: until all threads are stopped.
        arm_s: arming, and finding what was written until the stop.
        scan_s: finding the pages that exist.
        flush_s: from the last page of the last pass until everything has arrived.
        registers_s: reading the threads' states, until they run again.
    """

    freeze_s: float
    arm_s: float
    scan_s: float
    flush_s: float
    registers_s: float

    @property
    def total_s(self) -> float:
        """All together."""
        return self.freeze_s + self.arm_s + self.scan_s + self.flush_s + self.registers_s


def measured(boundary_s: Floats) -> StopCost:
    """Return the fixed part of a stop from the boundaries of a target, (n,), NaN where unknown."""
    known = boundary_s[~np.isnan(boundary_s)][-_LATEST:]
    known = known[known > 0]  # a recording that did not measure it has 0
    if not len(known):
        return StopCost()
    low, usual, high = np.quantile(known, (_LOW, _USUAL, _HIGH)).tolist()
    return StopCost(usual, _ALONE * low, high, len(known))


def given(seconds: float) -> StopCost:
    """Return the fixed part of a stop as a user states it."""
    return StopCost(seconds, seconds, seconds)
