"""Stepping along known curves, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.model.converge import Memory, least_bandwidth, simulate
from redirty.collector.model.curve import WriteCurve, Written
from redirty.collector.model.policy import Fixed, Goal, Qemu, Xen

PAGE = 4096
MIB = 1 << 20


def cyclic(pages: float, per_s: float) -> Written:
    return lambda t: min(pages, per_s * t)


def uniform(pages: float, per_s: float) -> Written:
    return lambda t: pages * -math.expm1(per_s * t * math.log1p(-1 / pages))


def test_cyclic_is_a_geometric_series() -> None:
    """Below saturation each pass is the one before times rate / bandwidth."""
    memory = Memory(131072, 0, PAGE)
    per_s, bandwidth = 8000.0, 50.0 * MIB
    found = simulate(memory, cyclic(1e9, per_s), Goal(0.3), bandwidth)
    ratio = per_s * PAGE / bandwidth
    first = 131072 * PAGE / bandwidth
    assert found.converges
    for number, one in enumerate(found.passes):
        assert one.duration_s == pytest.approx(first * ratio**number)
    count = len(found.passes)
    assert found.total_s == pytest.approx(first * (1 - ratio**count) / (1 - ratio))
    assert found.downtime_s <= 0.3 < found.passes[-2].duration_s


def test_cyclic_at_the_design_notes_rates() -> None:
    """A guest of 512 MiB with 8,000 pages/s over 64 MiB, migrated by QEMU 7.2 (design.md): never with
    20 MiB/s; 9.9 s and 10 passes with 50; 1.9 s and 4 passes with 200."""
    memory = Memory(131072, 40000, PAGE)
    written = cyclic(16384, 8000.0)
    assert not simulate(memory, written, Qemu(0.3), 20 * MIB).converges
    slow, fast = (simulate(memory, written, Qemu(0.3), rate * MIB) for rate in (50, 200))
    assert slow.total_s == pytest.approx(9.9, rel=0.1)
    assert fast.total_s == pytest.approx(1.9, rel=0.1)
    assert len(slow.passes) == pytest.approx(10, abs=2)
    assert len(fast.passes) == 4


def test_uniform_never_ends_below_its_critical_bandwidth() -> None:
    """W(d) pages must fit the downtime d; below, what is left settles at the fixed point of
    left = W(left / bandwidth)."""
    written = uniform(20000, 50000.0)
    memory = Memory(50000, 0, PAGE)
    goal = 0.2
    needed = least_bandwidth(memory, written, Goal(goal), goal)
    assert needed is not None
    assert needed == pytest.approx(written(goal) * PAGE / goal, rel=0.01)
    below = simulate(memory, written, Goal(goal), needed * 0.9)
    assert not below.converges
    assert below.left_bytes == pytest.approx(
        written(below.left_bytes / (needed * 0.9)) * PAGE, rel=1e-4
    )


def test_idle_takes_one_pass_and_no_downtime() -> None:
    found = simulate(Memory(1000, 0, PAGE), lambda t: 0.0, Goal(0.1), 1e6)
    assert found.converges
    assert [p.bytes for p in found.passes] == [1000 * PAGE, 0]
    assert found.downtime_s == 0


def test_zero_pages_cost_their_header() -> None:
    found = simulate(Memory(1000, 600, PAGE), lambda t: 0.0, Qemu(1e-9), 1e6)
    assert found.transferred_bytes == pytest.approx(400 * (PAGE + 8) + 600 * 9, rel=1e-3)


def test_fixed_numbers_of_passes() -> None:
    written = cyclic(1000, 1e6)
    for policy, passes in ((Fixed(3), 3), (Fixed(1, "criu"), 1), (Xen(), 5)):
        found = simulate(Memory(5000, 0, PAGE), written, policy, 1e6)
        assert found.converges, "it stops whatever is left"
        assert len(found.passes) == passes + 1
        assert found.passes[-1].bytes == pytest.approx(1000 * (PAGE + policy.header_bytes))


@given(
    bandwidth=st.floats(1e3, 1e12),
    pages=st.floats(1, 1e8),
    rate=st.floats(0, 1e8),
    downtime=st.floats(1e-4, 10),
)
def test_more_bandwidth_is_never_worse(
    bandwidth: float, pages: float, rate: float, downtime: float
) -> None:
    memory, written = Memory(pages, 0, PAGE), cyclic(pages, rate)
    one, two = (simulate(memory, written, Goal(downtime), b) for b in (bandwidth, 2 * bandwidth))
    assert two.converges >= one.converges
    if one.converges:
        assert two.total_s <= one.total_s * (1 + 1e-9)
        assert one.downtime_s <= downtime * (1 + 1e-9)


def test_a_curve_between_and_beyond_its_points() -> None:
    t = np.array([0.001, 0.01, 0.1, 1.0])
    line = WriteCurve(t, 1000 * t, 1e9)
    assert line.tail == pytest.approx(1)
    for at in (0.0005, 0.05, 1.0, 7.0):
        assert line(at) == pytest.approx(1000 * at)
    flat = WriteCurve(t, np.array([10.0, 50.0, 50.0, 50.0]), 1e9)
    assert flat.tail == 0
    assert flat(100.0) == 50
    assert WriteCurve(t, 1000 * t, 2500)(9.0) == 2500
    assert line(0) == 0


@pytest.mark.parametrize(
    ("t", "w"), [([], []), ([0.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 2.0])]
)
def test_no_curve(t: list[float], w: list[float]) -> None:
    with pytest.raises(ValueError):
        WriteCurve(np.array(t), np.array(w), 10)
