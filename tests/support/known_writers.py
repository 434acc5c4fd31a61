"""Writers with known write curves, and what a recording of them would contain.

Each writer is simulated page by page, and its expected write curve W(t) is a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.model.observations import ALL, Observations, Points

PAGE = 4096
PER_OCTAVE = 8
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Curve = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Known:
    """A writer with a known write curve.

    Attributes:
        name: for test ids.
        writes: returns the page numbers of the first n writes, in order.
        rate: writes per second.
        curve: W(t), t in seconds.
    """

    name: str
    writes: Callable[[int], Ints]
    rate: float
    curve: Curve


def cyclic(pages: int, rate: float) -> Known:
    """Write pages in turn, again and again: W(t) = min(S, P t)."""
    return Known(
        f"cyclic {pages}",
        lambda n: np.arange(n) % pages,
        rate,
        lambda t: np.minimum(float(pages), rate * t),
    )


def uniform(pages: int, rate: float, seed: int = 1) -> Known:
    """Write pages uniformly at random: W(t) = S (1 - (1 - 1/S)^(P t))."""
    return Known(
        f"uniform {pages}",
        lambda n: np.random.default_rng(seed).integers(0, pages, n),
        rate,
        lambda t: -pages * np.expm1(rate * t * np.log1p(-1 / pages)),
    )


def zipf(pages: int, rate: float, exponent: float = 1.0, seed: int = 2) -> Known:
    """Write page i with probability p ~ 1 / i^s: W(t) is the sum of 1 - (1 - p)^(P t)."""
    p = 1.0 / np.arange(1, pages + 1) ** exponent
    p /= p.sum()
    groups, counts = np.unique(np.round(p, 12), return_counts=True)

    def curve(t: Floats) -> Floats:
        found: Floats = (counts[:, None] * -np.expm1(rate * t * np.log1p(-groups)[:, None])).sum(0)
        return found

    return Known(
        f"zipf {pages}",
        lambda n: np.random.default_rng(seed).choice(pages, n, p=p),
        rate,
        curve,
    )


def hot_and_cold(hot: int, cold: int, rate: float, share: float = 0.8, seed: int = 3) -> Known:
    """Send a share of the writes to a few pages and the rest to many, at random in both sets."""
    hot_writer, cold_writer = uniform(hot, rate * share), uniform(cold, rate * (1 - share))

    def writes(n: int) -> Ints:
        rng = np.random.default_rng(seed)
        return np.where(
            rng.random(n) < share, rng.integers(0, hot, n), hot + rng.integers(0, cold, n)
        )

    return Known("hot and cold", writes, rate, lambda t: hot_writer.curve(t) + cold_writer.curve(t))


def record(known: Known, rounds: int, interval_s: float, present: int) -> Observations:
    """Return the observations of a writer in rounds of equal length.

    They have W(t) of each round at 8 points per octave, and of each window of several rounds at its end.
    """
    per_round = round(known.rate * interval_s)
    writes = known.writes(per_round * rounds)
    steps = max(2, int(np.log2(per_round) * PER_OCTAVE))
    at = np.unique(np.geomspace(1, per_round, steps).astype(np.int64))
    rows: list[tuple[int, int, float, float, float]] = []
    dirty = np.zeros(rounds)
    for number in range(rounds):
        part = writes[number * per_round : (number + 1) * per_round]
        firsts = np.sort(np.unique(part, return_index=True)[1])
        seen = np.searchsorted(firsts, at - 1, side="right")
        rows += [
            (number, 0, n / known.rate, w, np.nan) for n, w in zip(at[:-1], seen, strict=False)
        ]
        dirty[number] = seen[-1]
    for first, length in windows_of(rounds):
        pages = len(np.unique(writes[first * per_round : (first + length) * per_round]))
        rows.append((first, length, length * interval_s, pages, pages))
    return observed(rows, dirty, interval_s, present)


def windows_of(rounds: int) -> Iterator[tuple[int, int]]:
    """Yield (first round, number of rounds) of the windows that are counted.

    There are 8 lengths per octave; those up to 2^j begin at each multiple of 2^j.
    """
    for first in range(rounds):
        yield first, 1
        for j in range(1, rounds.bit_length() + 1):
            if first % (1 << j) == 0:
                step = 1 << max(0, j - 4)
                for length in range((1 << j - 1) + step, (1 << j) + 1, step):
                    if first + length <= rounds:
                        yield first, length


def observed(
    rows: list[tuple[int, int, float, float, float]], dirty: Floats, interval_s: float, present: int
) -> Observations:
    """Build observations of pages that were all present.

    Args:
        rows: (round, rounds, elapsed_s, dirty, redirtied) of each point of the curves.
        dirty: (n,) dirty pages of each round.
        interval_s: length of a round.
        present: present pages.
    """
    table = np.array(rows)
    count = len(dirty)
    zeros = np.zeros(count)
    return Observations(
        page_size=PAGE,
        number=np.arange(count),
        duration_s=np.full(count, interval_s),
        arm_s=zeros,
        present=np.full(count, float(present)),
        dirty=dirty,
        redirtied=dirty,
        missed=zeros,
        points=Points(
            number=table[:, 0].astype(np.int64),
            rounds=table[:, 1].astype(np.int64),
            mapping_class=np.full(len(table), ALL),
            elapsed_s=table[:, 2],
            dirty=table[:, 3],
            redirtied=table[:, 4],
            raced=np.full(len(table), np.nan),
        ),
    )
