"""Estimates of how much of what was written is written again, from a write curve."""

from __future__ import annotations

from redirty.collector.model.memory import share
from redirty.collector.model.write_curve import WriteModel


def rewritten(written: WriteModel, before_s: float, now_s: float) -> float:
    """Return the probability that a page written in before_s is also written in the now_s that follow.

    For a stationary workload: (W(before) + W(now) - W(before + now)) / W(before).
    """
    one = written(before_s)
    return share(max(one + written(now_s) - written(before_s + now_s), 0.0), one)


def met_before_read(
    written: WriteModel,
    before_s: float | None,
    now_s: float,
    order: tuple[float, ...] | list[float],
    late_s: float = 0.0,
) -> list[float]:
    """Return how many pages written in a pass are unchanged since the pass read them.

    Args:
        written: the write curve.
        before_s: the pass reads what was written in this period before it; None: everything.
        now_s: length of the pass.
        order: bytes that the pass sends of each of n equal parts of the memory, in sequence.
        late_s: how long after the arm the pass starts.

    Returns: pages by part, (n,), each as if all parts were like it.
    """

    before = 0.0 if before_s is None else written(before_s)

    def met(t: float) -> float:
        """Return the pages that the pass reads and that are written within t."""
        if before_s is None:
            return written(t)
        return max(before + written(t) - written(before_s + t), 0.0)

    total = max(sum(order), 1e-300)
    all_met = met(late_s + now_s)
    found, done = [], 0.0
    for part in order:
        at = (done + part / 2) / total
        found.append(max(all_met - met((1 - at) * now_s), 0.0))
        done += part
    return found


def written_again(written: WriteModel, seconds: float, page_bytes: float) -> tuple[float, float]:
    """Return the bytes written in both of two consecutive periods, and the probability of a third write.

    For a stationary workload, by inclusion and exclusion: the bytes of the pages written in both periods, and
    the probability that such a page is also written in a third one.
    """
    one, two, three = (written(seconds * n) for n in (1, 2, 3))
    both = max(2 * one - two, 0.0)
    all_three = max(3 * one - 3 * two + three, 0.0)
    return both * page_bytes, share(all_three, both)
