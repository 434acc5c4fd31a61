"""Links without a kernel: decoded messages of qdiscs, the path down from a device, the sums."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.errors import RedirtyError
from redirty.collector.net.interfaces import Interface, path_down, require_usable
from redirty.collector.net.link import LinkCounters, summarize
from redirty.collector.net.qdisc import Entry, Limit, attributes, decode, limits, show

ROOT = 0xFFFFFFFF


def attribute(kind: int, data: bytes) -> bytes:
    """Encode an attribute as the kernel does: length, type, data, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind: str, handle: int, parent: int, options: bytes, sent: int) -> bytes:
    """Encode RTM_NEWQDISC as the kernel sends it."""
    basic = attribute(1, struct.pack("=QI", sent, 7))
    body = struct.pack("=BBHiIII", 0, 0, 0, 3, handle, parent, 1)
    body += attribute(1, kind.encode() + b"\0") + attribute(2, options) + attribute(7, basic)
    return struct.pack("=IHHII", 16 + len(body), 36, 2, 9, 1) + body


def entry(kind: str, handle: int, parent: int, options: bytes = b"", sent: int = 0) -> Entry:
    return decode(message(kind, handle, parent, options, sent))


def spec(rate: int) -> bytes:
    """Encode a struct tc_ratespec."""
    return struct.pack("=BBHhHI", 0, 1, 0, 0, 0, rate)


def tbf(rate: int, wide: int = 0) -> bytes:
    data = attribute(1, spec(rate) + spec(0) + struct.pack("=III", 1, 2, 3))
    return data + (attribute(4, struct.pack("=Q", wide)) if wide else b"")


def htb_class(ceil: int, wide: int = 0) -> bytes:
    data = attribute(1, spec(1) + spec(ceil) + struct.pack("=5I", 0, 0, 0, 0, 0))
    return data + (attribute(7, struct.pack("=Q", wide)) if wide else b"")


def htb(default: int) -> bytes:
    return attribute(2, struct.pack("=5I", 3, 10, default, 0, 0))


def found(*qdiscs: Entry, classes: tuple[Entry, ...] = ()) -> list[tuple[float, str]]:
    return [(limit.rate, limit.what) for limit in limits(qdiscs, classes)]


def test_a_message() -> None:
    known = entry("tbf", 0x80010000, ROOT, tbf(1000), sent=12345)
    assert known == Entry("tbf", 0x80010000, ROOT, tbf(1000), 12345)
    assert show(known.handle) == "8001:"
    assert show(0x1000A) == "1:a"


def test_rates_by_kind() -> None:
    """Rates are at the offsets of linux/pkt_sched.h; all ones and 0 mean no limit."""
    fq = attribute(7, struct.pack("=I", 125_000))
    cake = attribute(2, struct.pack("=Q", 6_000_000_000))
    netem = bytes(24) + attribute(6, struct.pack("=IiIi", 777, 0, 0, 0))
    wide = bytes(24) + attribute(6, struct.pack("=IiIi", 0xFFFFFFFF, 0, 0, 0))
    wide += attribute(8, struct.pack("=Q", 5 << 32))
    for kind, options, rate in (
        ("tbf", tbf(1000), 1000),
        ("tbf", tbf(0xFFFFFFFF, 1 << 33), 1 << 33),
        ("fq", fq, 125_000),
        ("fq", attribute(7, b"\xff" * 4), None),
        ("fq", b"", None),
        ("cake", cake, 6_000_000_000),
        ("cake", attribute(2, bytes(8)), None),
        ("netem", netem, 777),
        ("netem", wide, 5 << 32),
        ("netem", bytes(24), None),
        ("pfifo_fast", b"", None),
    ):
        known = [one for one, _ in found(entry(kind, 0x10000, ROOT, options))]
        assert known == ([] if rate is None else [rate]), (kind, options)
    assert found(entry("fq", 0x10000, ROOT, fq)) == [(125_000, "fq 1: maxrate, of each flow")]
    assert limits([entry("fq", 0x10000, ROOT, fq, sent=99)], [])[0].sent_bytes == 0


def test_htb_from_its_default_class_up() -> None:
    root = entry("htb", 0x10000, ROOT, htb(0x20))
    top = entry("htb", 0x10001, ROOT, htb_class(500), sent=30)
    leaf = entry("htb", 0x10020, 0x10001, htb_class(0xFFFFFFFF, 1 << 40), sent=20)
    other = entry("htb", 0x10030, 0x10001, htb_class(5))
    below = entry("tbf", 0x200000, 0x10020, tbf(7))
    elsewhere = entry("tbf", 0x300000, 0x10030, tbf(1))
    assert found(root, below, elsewhere, classes=(top, leaf, other)) == [
        (1 << 40, "htb class 1:20"),
        (500, "htb class 1:1"),
        (7, "tbf 20:"),
    ]
    assert [limit.sent_bytes for limit in limits([root], [top, leaf])] == [20, 30]
    assert found(entry("htb", 0x10000, ROOT, htb(0)), classes=(top, leaf)) == []


def test_hfsc_by_the_upper_limit_of_its_default_class() -> None:
    root = entry("hfsc", 0x10000, ROOT, struct.pack("=H", 0x20))
    leaf = entry("hfsc", 0x10020, ROOT, attribute(3, struct.pack("=III", 900, 10, 640)))
    real = entry("hfsc", 0x10021, ROOT, attribute(1, struct.pack("=III", 9, 10, 6)))
    assert found(root, classes=(leaf, real)) == [(640, "hfsc class 1:20")]


def test_one_queue_of_many_is_what_a_flow_gets() -> None:
    """The kernel installs an mq with handle 0, whose children have the parents 0:1, 0:2."""
    mq = entry("mq", 0, ROOT)
    slow = entry("fq", 0, 2, attribute(7, struct.pack("=I", 30)))
    fast = entry("fq", 0, 1, attribute(7, struct.pack("=I", 50)))
    free = entry("fq", 0, 3, attribute(7, b"\xff" * 4))
    assert found(mq, fast, slow, free) == [(30, "fq 0: maxrate, of each flow")]


def test_a_limit_inside_a_limit_counts_too_and_bands_do_not() -> None:
    tbf_root = entry("tbf", 0x10000, ROOT, tbf(100))
    inner = entry(
        "netem", 0x20000, 0x10001, bytes(24) + attribute(6, struct.pack("=IiIi", 9, 0, 0, 0))
    )
    assert found(tbf_root, inner) == [(100, "tbf 1:"), (9, "netem 2:")]
    prio = entry("prio", 0x10000, ROOT)
    assert found(prio, inner) == [], "which band it is depends on filters"
    ingress = entry("ingress", 0xFFFF0000, 0xFFFFFFF1)
    assert found(ingress) == []


@given(st.binary(max_size=200))
def test_attributes_of_anything(data: bytes) -> None:
    """Data that is cut short, or whose lengths lead out of it, is not read past its end."""
    assert all(len(value) <= len(data) for value in attributes(data).values())


# ---- the path down ----


class FakeKernel:
    """A stand-in for the kernel: speeds by name."""

    def __init__(self, **speeds: float) -> None:
        self.speeds = speeds

    def speed(self, interface: Interface) -> float | None:
        return self.speeds.get(interface.name)


def device(index: int, name: str, kind: str = "", **more: Any) -> Interface:
    values: dict[str, Any] = {
        "flags": 1,
        "carrier": True,
        "below": 0,
        "master": 0,
        "tx_bytes": 0,
    } | more
    return Interface(index=index, name=name, kind=kind, **values)


def down(there: list[Interface], **speeds: float) -> tuple[list[str], float]:
    path, speed = path_down(FakeKernel(**speeds), there, there[0])  # type: ignore[arg-type]
    return [i.name for i in path], speed


def test_a_device_with_a_speed_ends_the_path() -> None:
    assert down([device(1, "eth0"), device(2, "eth1")], eth0=5.0, eth1=6.0) == (["eth0"], 5.0)


def test_the_path_goes_down_through_devices_without_a_speed() -> None:
    there = [device(4, "v5", "vlan", below=3), device(3, "bond0", "bond")]
    there += [device(2, "eth0", master=3), device(1, "eth1", master=3, flags=0)]
    assert down(there, eth0=7.0, eth1=8.0) == (["v5", "bond0", "eth0"], 7.0)
    assert down(there, bond0=9.0) == (["v5", "bond0"], 9.0)
    # a VLAN reports the speed of the device below it, whose use and limits count
    assert down(there, v5=9.0, bond0=9.0) == (["v5", "bond0"], 9.0)
    assert down([device(4, "v5", "vlan")], v5=9.0) == (["v5"], 9.0), "below is another namespace"


def test_a_bridge_is_as_fast_as_its_hardware_port() -> None:
    """The kernel would report 10 Gb/s for it, the speed of its virtual machines' ports."""
    there = [device(1, "br0", "bridge"), device(2, "veth1", "veth", master=1)]
    there += [device(3, "tap0", "tun", master=1), device(4, "eth0", master=1)]
    assert down(there, br0=1250.0, veth1=1250.0, eth0=125.0) == (["br0", "eth0"], 125.0)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([device(1, "wlan0")], "the speed of wlan0 is not known: its driver reports no speed"),
        ([device(1, "wg0", "wireguard")], "the speed of wg0 is not known: a wireguard device has"),
        (
            [device(1, "v5", "vlan", below=2), device(2, "wlan0")],
            "the speed of v5 (which sends through wlan0) is not known: its driver reports no speed",
        ),
        (
            [device(1, "br0", "bridge"), *(device(i, f"eth{i}", master=1) for i in (2, 3))],
            "br0 has several ports that packets may leave by (eth2, eth3): name one with --link",
        ),
        (
            [device(1, "a", "vlan", below=2), device(2, "b", "vlan", below=1)],
            "the speed of a (which sends through b) is not known",
        ),
    ],
)
def test_no_speed(devices: list[Interface], expected: str) -> None:
    with pytest.raises(RedirtyError) as error:
        down(devices)
    assert str(error.value).startswith(expected)
    assert str(error.value).endswith("give the rate instead: --bandwidth RATE")


def test_ports_that_cannot_send_are_ignored() -> None:
    there = [device(1, "br0", "bridge"), device(2, "eth0", master=1, carrier=False)]
    there += [device(3, "eth1", master=1, flags=0), device(4, "eth2", master=1)]
    assert down(there, eth0=1.0, eth1=2.0, eth2=3.0) == (["br0", "eth2"], 3.0)
    with pytest.raises(RedirtyError, match="no carrier"):
        require_usable(there[1])
    require_usable(there[3])


# ---- sums ----


def limit(rate: float, sent: int, what: str = "tbf 1:") -> dict[str, Limit]:
    return {f"{what} on eth0": Limit(rate, what, sent)}


def test_free_bandwidth_is_what_the_tightest_limit_leaves() -> None:
    path = [device(5, "v5", "vlan"), device(2, "eth0")]
    before = LinkCounters({5: 0, 2: 1000}, limit(300.0, 50))
    after = LinkCounters({5: 9, 2: 1400}, limit(300.0, 250))
    link = summarize(path, 1000.0, before, after, 2.0)
    assert (link.iface, link.speed_from) == ("v5", "eth0")
    assert (link.speed_bytes_per_s, link.used_bytes_per_s) == (1000.0, 200.0)
    assert (link.limit_bytes_per_s, link.limit_used_bytes_per_s) == (300.0, 100.0)
    assert (link.limit_from, link.free_bytes_per_s) == ("tbf 1: on eth0", 200.0)
    full = summarize(
        path, 400.0, LinkCounters({5: 0, 2: 0}, {}), LinkCounters({5: 0, 2: 5000}, {}), 1.0
    )
    assert (full.used_bytes_per_s, full.free_bytes_per_s) == (5000.0, 0.0)


def test_a_limit_that_leaves_more_than_the_link_does_not_bind() -> None:
    path = [device(2, "eth0")]
    before, after = LinkCounters({2: 0}, limit(900.0, 0)), LinkCounters({2: 700}, limit(900.0, 0))
    link = summarize(path, 1000.0, before, after, 1.0)
    assert (link.limit_bytes_per_s, link.free_bytes_per_s) == (None, 300.0)


def test_counters_that_were_reset_count_as_nothing() -> None:
    path = [device(2, "eth0")]
    before, after = (
        LinkCounters({2: 5000}, limit(900.0, 5000)),
        LinkCounters({2: 10}, limit(900.0, 10)),
    )
    link = summarize(path, 1000.0, before, after, 1.0)
    assert (link.used_bytes_per_s, link.limit_used_bytes_per_s) == (0.0, 0.0)
    assert link.free_bytes_per_s == 900.0
