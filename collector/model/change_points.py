"""Does a workload behave now as it did before? Changes of its dirty rate, round by round."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEAST_ROUNDS = 5  # a phase is at least so long
_LEAST_SHARE = 1 / 16  # of all rounds, for the last one to count alone
_LEAST_CHANGE = 0.2  # of the larger of the two rates
_SURE = 5.0  # times the noise
_ALIKE = 0.25


@dataclass(frozen=True)
class ChangePoints:
    """first: index of the first round that counts for what comes next. changes: where the rate
    changed. comes_back: it went back to what it was before, so all rounds count. too_late: the last
    change was so late that what comes after it is too little to go by."""

    first: int
    changes: tuple[int, ...]
    comes_back: bool
    too_late: bool = False


def find(rate: Floats) -> ChangePoints:
    """ChangePoints of rounds with these dirty rates, in pages per second: (n,)."""
    cuts = tuple(sorted(_split(rate, 0, len(rate), _noise(rate))))
    if not cuts:
        return ChangePoints(0, (), False)
    bounds = [0, *cuts, len(rate)]
    levels = [float(rate[a:b].mean()) for a, b in itertools.pairwise(bounds)]
    now = levels[-1]
    alike = [abs(level - now) <= _ALIKE * max(level, now) for level in levels[:-2]]
    if any(alike) and len(cuts) >= 3:
        return ChangePoints(0, cuts, True)
    if len(rate) - cuts[-1] < _LEAST_SHARE * len(rate):
        return ChangePoints(cuts[-2] if len(cuts) > 1 else 0, cuts, False, True)
    return ChangePoints(cuts[-1], cuts, False)


def _noise(rate: Floats) -> float:
    """The spread from one round to the next, whatever changes there are; not below 2 %."""
    if len(rate) < 2:
        return 0.0
    steps = np.abs(np.diff(rate))
    found: float = max(
        1.4826 * float(np.median(steps)) / np.sqrt(2), 0.02 * float(np.abs(rate).mean())
    )
    return found


def _split(rate: Floats, first: int, end: int, noise: float) -> list[int]:
    """Cuts of the rounds [first, end): the clearest one, and those on both sides of it."""
    found: list[int] = []
    todo = [(first, end)]
    while todo:
        a, b = todo.pop()
        count = b - a
        if count < 2 * LEAST_ROUNDS or noise <= 0:
            continue
        part = rate[a:b]
        sums = np.cumsum(part)
        left = np.arange(1, count)
        before = sums[:-1] / left
        after = (sums[-1] - sums[:-1]) / (count - left)
        apart = np.abs(before - after)
        clear = apart * np.sqrt(left * (count - left) / count) / noise
        clear[: LEAST_ROUNDS - 1] = 0
        clear[count - LEAST_ROUNDS :] = 0
        best = int(np.argmax(clear))
        larger = max(before[best], after[best])
        if clear[best] < _SURE or apart[best] < _LEAST_CHANGE * larger:
            continue
        cut = a + best + 1
        found.append(cut)
        todo += [(a, cut), (cut, b)]
    return found
