"""Policies that people run, against oracles worked out by hand on cyclic and uniform writers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from redirty.collector.errors import UsageError
from redirty.collector.model.memory import Memory
from redirty.collector.model.policies import policy_of
from redirty.collector.model.policy import Policy
from redirty.collector.model.predict import answer, as_json, forecast
from redirty.collector.model.prediction import Question
from redirty.collector.model.simulation import Outcome, simulate
from redirty.collector.model.throttle import Throttle
from redirty.collector.model.write_curve import WriteModel

from tests.support.known_writers import cyclic as cyclic_writer
from tests.support.known_writers import record

PAGE = 4096
PAGES = 50_000
PER_S = 10_000.0  # pages that the link carries


def cyclic(pages: float, per_s: float) -> WriteModel:
    return lambda t: min(pages, per_s * t)


def uniform(pages: float, per_s: float) -> WriteModel:
    return lambda t: pages * -math.expm1(-per_s * t / pages)


def run(name: str, written: WriteModel, goal: float, *, zero: float = 0.0) -> Outcome:
    """Run a policy over a link that carries PER_S whole pages of it."""
    policy = policy_of(name, goal)
    memory = Memory(PAGES, zero, PAGE)
    return simulate(memory, written, policy, PER_S * memory.page_bytes(policy))


def auto_converge(written: WriteModel, goal: float) -> list[float]:
    """Return the lengths of QEMU's passes, by its rules: 20 %, then 10 % more, whenever in two periods of more than a
    second more was written than half of what was sent."""
    left, percent, high, found = float(PAGES), 0, 0, []
    seconds = dirty = sent = 0.0
    while True:
        took = left / PER_S
        found.append(took)
        sent += left
        left = written(took * (100 - percent) / 100)
        dirty, seconds = dirty + left, seconds + took
        if left * PAGE < PER_S * (PAGE + 8) * goal:
            return [*found, left / PER_S]
        if seconds > 1:
            high += dirty > sent / 2
            seconds = dirty = sent = 0.0
            if high == 2:
                percent, high = (20 if percent == 0 else min(percent + 10, 99)), 0


@pytest.mark.parametrize("times", [0.6, 1.05, 1.5, 3.0])
def test_auto_converge_throttles_until_it_converges(times: float) -> None:
    """A cyclic writer faster than the link: each pass is the one before times its throttled rate."""
    written = cyclic(30_000, times * PER_S)
    found = run("qemu-auto-converge", written, 0.0005)
    expected = auto_converge(written, 0.0005)
    assert [p.duration_s for p in found.passes] == pytest.approx(expected, rel=1e-6)
    assert found.converges
    assert run("qemu", written, 0.0005).converges == (times < 1)


def test_auto_converge_that_is_too_weak_never_ends() -> None:
    """1 % of a writer of that speed is still more than the link carries."""
    found = run("qemu-auto-converge", lambda t: min(30_000, 1e9 * t), 0.0005)
    assert (found.converges, found.total_s) == (False, math.inf)


def test_the_steps_of_a_throttle() -> None:
    throttle, percents = Throttle(), []
    for _ in range(24):
        throttle = throttle.after(sent=100.0, dirty=60.0, seconds=1.5)
        percents.append(throttle.percent)
    assert percents[::2] == [0, *[20 + 10 * n for n in range(8)], 99, 99, 99]
    assert throttle.settled
    quiet = Throttle()
    for _ in range(9):
        quiet = quiet.after(sent=100.0, dirty=50.0, seconds=1.5)
    assert quiet.percent == 0, "half of what was sent is not above the threshold"
    short = Throttle().after(100.0, 90.0, 0.4).after(100.0, 90.0, 0.4)
    assert short.high == 0, "a period is more than a second"
    assert short.after(100.0, 90.0, 0.4).high == 1


def test_a_guest_that_idles_is_throttled_less_than_its_cpus() -> None:
    """A vCPU that is busy for a quarter of the time is not slowed down when 60 % is taken."""
    paces = [Throttle(percent=p, busy=0.25).pace(lambda t: t, PAGE) for p in (0, 60, 80, 90)]
    assert paces == pytest.approx([1.0, 1.0, 0.8, 0.4])
    seen = record(cyclic_writer(20_000, 1.5 * PER_S), 12, 0.25, PAGES)
    question = Question(PER_S * (PAGE + 8), 0.01, "qemu-auto-converge")
    busy, idle = (forecast(replace(seen, busy=b), question) for b in (1.0, 0.25))
    assert busy.middle.converges and idle.middle.converges
    assert (busy.verdict, idle.verdict) == ("converges", "uncertain")
    assert any("may catch up" in note for note in as_json(idle)["notes"])
    assert not any("may catch up" in note for note in as_json(busy)["notes"])
    assert idle.middle.total_s > busy.middle.total_s
    plain = replace(question, policy="qemu")
    least = [as_json(forecast(replace(seen, busy=b), plain))["settings"] for b in (1.0, 0.25)]
    assert [s["throttle_percent"] for s in least] == pytest.approx([34, 84], abs=2)


def test_a_dirty_limit_has_the_closed_form() -> None:
    """A uniform writer that runs for a share p writes S (1 - exp(-p r / S)) in a second: the limit."""
    pages, per_s, limit = 20_000.0, 30_000.0, 3000.0
    written = uniform(pages, per_s)
    share = -pages / per_s * math.log(1 - limit / pages)
    limited = Throttle(limit=limit * PAGE, percent=99)
    assert limited.pace(written, PAGE) == pytest.approx(share, rel=1e-6)
    assert Throttle(limit=limit * PAGE).pace(written, PAGE) == 1.0, "before it acts"
    assert Throttle(limit=1e12, percent=99).pace(written, PAGE) == 1.0
    found = run(f"qemu-dirty-limit:{limit * (PAGE + 8):.0f}B", written, 0.0002)
    # The first pass leaves less than half of what it sent; the limit acts after the next two.
    expected = [PAGES / PER_S]
    for _ in range(3):
        expected.append(written(expected[-1]) / PER_S)
    while expected[-1] * PER_S * PAGE >= PER_S * (PAGE + 8) * 0.0002:
        expected.append(written(share * expected[-1]) / PER_S)
    assert [p.duration_s for p in found.passes] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stop_s", [None, 0.02])
def test_post_copy_stops_for_the_fixed_part_alone(stop_s: float | None) -> None:
    written = uniform(20_000, 40_000.0)
    policy = policy_of("qemu-postcopy", 0.3, stop_s=stop_s)
    memory = Memory(PAGES, 0, PAGE)
    found = simulate(memory, written, policy, PER_S * memory.page_bytes(policy))
    first = PAGES / PER_S
    assert found.downtime_s == (stop_s or 0.0)
    assert found.total_s == pytest.approx(first + written(first) / PER_S + (stop_s or 0.0))
    assert found.converges and len(found.passes) == 2
    assert not simulate(memory, written, policy_of("qemu-postcopy", 0.3, stop_s=0.4), 1e9).converges


def test_multifd_sends_packets_of_offsets() -> None:
    """128 pages share a header of 320 bytes and have an offset of 8 bytes each, zero or not."""
    policy = policy_of("qemu-multifd", 0.3)
    memory = Memory(PAGES, 20_000, PAGE)
    each = (320 + 128 * 8) / 128
    assert memory.first_pass_bytes(policy) == pytest.approx(30_000 * PAGE + PAGES * each)
    assert policy.name == "qemu-multifd"


def test_cloud_hypervisor_compares_after_each_pass() -> None:
    """A cyclic writer at 0.4 of the link: each pass is 0.4 of the one before, until the rest fits."""
    found = run("cloud-hypervisor", cyclic(PAGES, 0.4 * PER_S), 0.3)
    expected = [5.0]
    while expected[-1] > 0.3:
        expected.append(expected[-1] * 0.4)
    assert [p.duration_s for p in found.passes] == pytest.approx(expected)
    assert found.downtime_s == pytest.approx(expected[-1])


def test_cloud_hypervisor_is_cancelled_or_forced_after_an_hour() -> None:
    written = cyclic(8000, 3 * PER_S)
    cancelled, forced = (
        run(name, written, 0.3) for name in ("cloud-hypervisor", "cloud-hypervisor:force")
    )
    assert (cancelled.converges, cancelled.total_s) == (False, math.inf)
    assert not forced.converges, "the downtime is longer than asked for"
    assert forced.downtime_s == pytest.approx(0.8)
    assert forced.total_s == pytest.approx(3600 + 0.8)
    assert forced.transferred_bytes == pytest.approx(forced.total_s * PER_S * PAGE)


def test_cloud_hypervisor_gives_up_while_it_still_makes_progress() -> None:
    """At 0.9999 of the link each pass is a little shorter: there is no time for all of them."""
    found = run("cloud-hypervisor", cyclic(1e9, 0.9999 * PER_S), 0.3)
    assert found.total_s == math.inf
    assert sum(p.duration_s for p in found.passes) == pytest.approx(3600, abs=6)


def test_a_page_server_sees_pre_dumps_at_the_rate_of_the_link() -> None:
    written = uniform(20_000, 15_000.0)
    found = run("criu-page-server:2", written, 10.0)
    first = PAGES / PER_S
    second = written(first) / PER_S
    assert [p.duration_s for p in found.passes] == pytest.approx(
        [first, second, written(second) / PER_S]
    )


@pytest.mark.parametrize("policy", ["redirty", "qemu", "criu:1", "cloud-hypervisor"])
def test_compression_makes_contents_smaller(policy: str) -> None:
    seen = record(cyclic_writer(4000, 2000.0), 12, 0.25, 30_000)
    plain, small = (
        forecast(seen, Question(1e8, 1.0, policy, compression=ratio)) for ratio in (1.0, 2.5)
    )
    header = plain.policy.header_bytes
    for found, ratio in ((plain, 1.0), (small, 2.5)):
        first = found.memory.first_pass_bytes(found.policy)
        assert first == pytest.approx(30_000 * (PAGE / ratio + header))
    assert small.middle.total_s < plain.middle.total_s


@pytest.mark.parametrize(("times", "percent"), [(0.9, 0), (1.5, 34), (4.0, 75)])
def test_the_smallest_throttle(times: float, percent: int) -> None:
    """A cyclic writer converges once its throttled rate is below that of the link."""
    seen = record(cyclic_writer(20_000, times * PER_S), 12, 0.25, PAGES)
    found = forecast(seen, Question(PER_S * (PAGE + 8), 0.01, "qemu"))
    settings = as_json(found)["settings"]
    assert settings["throttle_percent"] == pytest.approx(percent, abs=2)
    assert found.middle.converges == (percent == 0)


@pytest.mark.parametrize("policy", ["redirty", "cloud-hypervisor", "criu:2", "qemu-postcopy"])
def test_who_cannot_throttle_gets_no_such_advice(policy: str) -> None:
    seen = record(cyclic_writer(20_000, 1.5 * PER_S), 12, 0.25, PAGES)
    found = forecast(seen, Question(PER_S * PAGE, 0.01, policy))
    assert as_json(found)["settings"]["throttle_percent"] is None


@pytest.mark.parametrize("policy", ["qemu", "qemu-auto-converge", "redirty", "cloud-hypervisor"])
def test_the_settings_that_are_named_suffice(policy: str) -> None:
    seen = record(cyclic_writer(20_000, 1.5 * PER_S), 12, 0.25, PAGES)
    asked = Question(PER_S * PAGE / 4, 0.1, policy)
    found = forecast(seen, asked)
    named = as_json(found)["settings"]

    def converges(bandwidth: float, goal: float) -> bool:
        question = Question(bandwidth, goal, policy)
        return answer(found.fit, question).middle.converges

    assert converges(named["bandwidth_bytes_per_s"] * 1.001, 0.1)
    assert not converges(named["bandwidth_bytes_per_s"] * 0.98, 0.1)
    assert converges(asked.bandwidth, named["downtime_s"] * 1.001)
    if not policy.startswith(
        "qemu"
    ):  # which looks every 100 ms: a little less may be enough by chance
        assert not converges(asked.bandwidth, named["downtime_s"] * 0.98)


@pytest.mark.parametrize(
    "text",
    [
        "qemu-dirty-limit", "qemu-dirty-limit:", "qemu-dirty-limit:3", "qemu:3", "cloud-hypervisor:x",
        "criu-page-server", "criu-page-server:0", "qemu-postcopy:1", "",
    ],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        policy_of(text)


def test_names_are_what_was_written() -> None:
    names = (
        "redirty", "qemu", "qemu-auto-converge", "qemu-postcopy", "qemu-multifd", "qemu-dirty-limit:5MB",
        "cloud-hypervisor", "cloud-hypervisor:force", "criu:3", "criu-page-server:4", "passes:2",
    )  # fmt: skip
    policies: list[Policy] = [policy_of(name, 0.3) for name in names]
    assert tuple(p.name for p in policies) == names
