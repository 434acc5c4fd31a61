"""Extrapolation of a write curve beyond what was measured: a mixture of Poisson writers.

If every page is written at random moments, at its own rate, the expected number of distinct
pages written within t is W(t) = sum over pages of 1 - exp(-rate t). So any such curve is a mixture of
saturating exponentials, with a straight line for pages that will not be written again for long. Its
weights, none below 0, are found by least squares (Lawson and Hanson, Solving Least Squares Problems,
1974, chapter 23). Uniform, hot and cold, and Zipf writers are exactly of this form; a cyclic one is a
straight line until it wraps around, and flat afterwards: the two limits of the form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_OCTAVES = np.arange(-7, 5)  # time constants from a 128th of the longest time to 16 times it
_MAX_STEPS = 60
_NEAR = 0.02  # points before this part of the longest time say nothing about what follows it


@dataclass(frozen=True, eq=False)
class Mixture:
    """The function sum of weights x (1 - exp(-t / constants)) + slope x t, from last_s on.

    Attributes:
        constants_s: time constants.
        weights: pages, by time constant.
        slope: pages per second.
        last_s: end of what was measured.
    """

    constants_s: tuple[float, ...]
    weights: tuple[float, ...]
    slope: float
    last_s: float

    def __call__(self, elapsed_s: float) -> float:
        """Return the pages added after last_s."""
        more = self.slope * (elapsed_s - self.last_s)
        for constant, weight in zip(self.constants_s, self.weights, strict=True):
            more += weight * (math.exp(-self.last_s / constant) - math.exp(-elapsed_s / constant))
        return more


def fit_mixture(elapsed_s: Floats, pages: Floats) -> Mixture:
    """Fit a mixture to a curve, by relative error. elapsed_s, pages: (n,) ascending, n >= 1."""
    last_s = float(elapsed_s[-1])
    used = (pages > 0) & (elapsed_s >= last_s * _NEAR)
    times, wanted = elapsed_s[used], pages[used]
    if len(times) == 0:
        return Mixture((), (), 0.0, last_s)
    constants = last_s * 2.0**_OCTAVES
    basis = -np.expm1(-times[:, None] / constants)
    basis = np.column_stack((basis, times / last_s))
    # The last point counts most: the curve continues from there.
    trust = np.sqrt(times / last_s) / wanted
    weights = _not_negative(basis * trust[:, None], wanted * trust)
    found = [(float(c), float(w)) for c, w in zip(constants, weights[:-1], strict=True) if w > 0]
    return Mixture(
        tuple(c for c, _ in found),
        tuple(w for _, w in found),
        float(weights[-1]) / last_s,
        last_s,
    )


def _not_negative(a: Floats, b: Floats) -> Floats:
    """Return x >= 0 that minimizes |a x - b|, by the active set method."""
    count = a.shape[1]
    scale = np.linalg.norm(a, axis=0)
    a = a / scale
    products, wanted = a.T @ a, a.T @ b
    x = np.zeros(count)
    chosen = np.zeros(count, np.bool_)
    for _ in range(_MAX_STEPS):
        gradient = wanted - products @ x
        gradient[chosen] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= 1e-9:
            break
        chosen[best] = True
        while True:
            solved = np.zeros(count)
            solved[chosen] = np.linalg.lstsq(a[:, chosen], b, rcond=None)[0]
            below = chosen & (solved <= 0)
            if not below.any():
                x = solved
                break
            step = float((x[below] / (x[below] - solved[below])).min())
            x = x + step * (solved - x)
            chosen &= x > 1e-12
            x[~chosen] = 0.0
            if not chosen.any():
                break
    found: Floats = x / scale
    return found
