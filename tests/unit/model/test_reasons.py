"""The reason that is printed is the comparison that was made: it never contradicts the verdict."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.model.predict import as_json, forecast
from redirty.collector.model.prediction import Question

from tests.support.known_writers import cyclic, record, uniform

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_SEEN = {
    name: record(known, 12, 0.25, 30_000)
    for name, known in {
        "cyclic": cyclic(4000, 8000.0),
        "uniform": uniform(6000, 20_000.0),
        "few": uniform(40, 2000.0),
    }.items()
}


def amounts(text: str) -> list[float]:
    """Return the sizes and times of a sentence, in bytes and seconds."""
    found = re.findall(r"([\d.]+) (B|KiB|MiB|GiB|us|ms|s)\b", text)
    return [float(number) * _UNITS[unit] for number, unit in found]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(_SEEN)),
    st.floats(5.0, 9.5),
    st.floats(0.003, 2.0),
    st.sampled_from(["redirty", "qemu", "passes:2", "xen"]),
    st.sampled_from([None, 0.0, 0.01, 0.2, 1.0]),
    st.sampled_from([None, 1e6, 1e9]),
)
def test_a_reason_agrees_with_its_verdict(
    name: str, magnitude: float, goal: float, policy: str, stop: float | None, last: float | None
) -> None:
    question = Question(10**magnitude, goal, policy, last_bandwidth=last, stop_cost_s=stop)
    found = forecast(_SEEN[name], question)
    first, *rest = as_json(found)["reasons"]
    numbers = amounts(first)
    if found.middle.converges:
        sent_s, *stop_s, limit = numbers[1:]
        counted = stop_s if found.policy.counts_stop else []
        assert sent_s + sum(counted) <= limit * 1.06, first
    elif first.startswith("stopping alone"):
        assert numbers[0] >= numbers[1], first
    elif "and so does the next" in first:
        assert numbers[1] >= numbers[-1], first
        assert numbers[1] > numbers[-1] or "a little less" in first
    else:
        assert sum(numbers[1:-1]) >= numbers[-1] * 0.94, first
    assert any(line.startswith("uncertain:") for line in rest) == (found.verdict == "uncertain")
