"""Bandwidth of links set up by the test: speed, known traffic, qdiscs, and refusals."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.cli.main import main
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.net.link import LinkBandwidth, link_bandwidth
from redirty.collector.recording.writer import RecordingWriter

from tests.support.factories import meta, one_round, pages
from tests.support.netns import another_network, has, ip, own_network, send, tc, veth
from tests.tiers import require

VETH = 10e9 / 8  # the speed that a veth reports


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """Give every test a network namespace of its own."""
    with own_network():
        yield


@pytest.fixture
def peer(network: None) -> Iterator[int]:
    """Set up the other end of v0."""
    with another_network() as pid:
        veth(pid)
        yield pid


def quick(iface: str | None = None, host: str | None = None) -> LinkBandwidth:
    """Measure a link without traffic."""
    return link_bandwidth(iface=iface, host=host, seconds=0.001)


def measured(count: int, payload: int, iface: str) -> tuple[LinkBandwidth, int]:
    """Measure while a number of packets is sent; return how many bytes these are."""
    sent = []

    def meanwhile(seconds: float) -> None:
        sent.append(send(count, payload))
        time.sleep(seconds)

    found = link_bandwidth(seconds=0.02, iface=iface, wait=meanwhile)
    return found, sent[0]


def refused(iface: str | None = None, host: str | None = None) -> str:
    """Return the one line of a refusal."""
    with pytest.raises(RedirtyError) as error:
        quick(iface, host)
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- speed and use ----


def test_an_idle_link_is_all_free(peer: int) -> None:
    found = quick(iface="v0")
    assert (found.iface, found.speed_from, found.virtual) == ("v0", "v0", True)
    assert found.speed_bytes_per_s == found.free_bytes_per_s == VETH
    assert found.used_bytes_per_s == 0
    assert found.limit_bytes_per_s is None
    assert found.limit_from is None
    assert found.limit_used_bytes_per_s is None
    assert found.sampled_s >= 0.001


def test_use_is_what_was_sent(peer: int) -> None:
    found, sent = measured(300, 1000, iface="v0")
    assert sent == 300 * 1042
    assert found.used_bytes_per_s * found.sampled_s == pytest.approx(sent)
    assert found.free_bytes_per_s == pytest.approx(VETH - found.used_bytes_per_s)


def test_traffic_at_a_known_rate(peer: int) -> None:
    """A traffic of a hundred packets every 10 ms is measured; late packets are made up for."""
    rate = 10_000

    def meanwhile(seconds: float) -> None:
        begun, done = time.monotonic(), 0
        while (now := time.monotonic() - begun) < seconds:
            done += send(int(now * rate) - done // 542, 500)
            time.sleep(0.01)
        send(int((time.monotonic() - begun) * rate) - done // 542, 500)

    found = link_bandwidth(iface="v0", seconds=0.5, wait=meanwhile)
    # The queries before and after also take time, in which nothing is sent.
    assert found.used_bytes_per_s <= rate * 542 * 1.001
    assert found.used_bytes_per_s * found.sampled_s >= 0.5 * rate * 542 * 0.999


_BROADCASTS = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for _ in range(50):
    sender.sendto(bytes(900), ("10.9.0.255", 9))
"""


def received(name: str) -> int:
    """Return the bytes received by an interface, from /proc/net/dev."""
    return int(Path("/proc/thread-self/net/dev").read_text().split(f"{name}:")[1].split()[0])


def test_received_traffic_does_not_count(peer: int) -> None:
    before = received("v0")

    def meanwhile(seconds: float) -> None:
        words = ["nsenter", "-t", str(peer), "-n", sys.executable, "-c", _BROADCASTS]
        subprocess.run(words, check=True)

    found = link_bandwidth(iface="v0", seconds=0.001, wait=meanwhile)
    assert received("v0") - before >= 50 * 942
    assert found.used_bytes_per_s == 0


# ---- the route to a host ----


def test_the_route_to_a_host(peer: int) -> None:
    ip("addr", "add", "fd09::1/64", "dev", "lo")
    assert quick(host="10.9.0.77").iface == "v0"
    ip("route", "add", "default", "via", "10.9.0.2")
    assert quick(host="203.0.113.9").iface == "v0"


def test_the_route_to_a_host_by_ipv6(peer: int) -> None:
    Path("/proc/sys/net/ipv6/conf/v0/disable_ipv6").write_text("0")
    ip("addr", "add", "fd09::1/64", "dev", "v0", "nodad")
    assert quick(host="fd09::77").iface == "v0"
    assert quick(host="fe80::77%v0").iface == "v0"
    assert "no route to fd10::1" in refused(host="fd10::1")


def test_a_name_is_resolved(peer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with several addresses is resolved to the one that has a route, also when it is not the first."""

    def addresses(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert name == "away.example"
        return [(socket.AF_INET, 1, 6, "", (a, 0)) for a in ("192.0.2.1", "10.9.0.77")]

    monkeypatch.setattr(socket, "getaddrinfo", addresses)
    assert quick(host="away.example").iface == "v0"


# ---- qdiscs ----


def test_tbf_limits_a_link(peer: int) -> None:
    tc("qdisc add dev v0 root tbf rate 80mbit burst 1mb latency 1s")
    found, sent = measured(50, 1000, iface="v0")
    assert found.limit_bytes_per_s == 10e6
    assert found.limit_from is not None
    assert found.limit_from.startswith("tbf 8")
    assert found.limit_from.endswith(": on v0")
    assert found.limit_used_bytes_per_s is not None
    assert found.limit_used_bytes_per_s * found.sampled_s == pytest.approx(sent)
    assert found.free_bytes_per_s == pytest.approx(max(0.0, 10e6 - found.limit_used_bytes_per_s))
    assert found.speed_bytes_per_s == VETH


def test_a_limit_above_the_speed_is_ignored(peer: int) -> None:
    tc("qdisc add dev v0 root tbf rate 20gbit burst 1mb latency 1s")
    found = quick(iface="v0")
    assert found.limit_bytes_per_s is None
    assert found.free_bytes_per_s == VETH


def htb(default: str) -> None:
    """Limit the link to 100 Mbit/s; its class 1:10 to 20, 1:20 to 300."""
    tc(f"qdisc add dev v0 root handle 1: htb default {default} r2q 1000")
    tc("class add dev v0 parent 1: classid 1:1 htb rate 100mbit")
    tc("class add dev v0 parent 1:1 classid 1:10 htb rate 5mbit ceil 20mbit")
    tc("class add dev v0 parent 1:1 classid 1:20 htb rate 5mbit ceil 300mbit")


@pytest.mark.parametrize(
    ("default", "rate", "said"),
    [
        ("10", 20e6 / 8, "htb class 1:10 on v0"),
        ("20", 100e6 / 8, "htb class 1:1 on v0"),
        ("30", None, None),
    ],
)
def test_htb_holds_its_default_class(
    peer: int, default: str, rate: float | None, said: str | None
) -> None:
    """The limit is that of the default class or one above it; without that class (1:30) there is none."""
    htb(default)
    found = quick(iface="v0")
    assert (found.limit_bytes_per_s, found.limit_from) == (rate, said)
    assert found.free_bytes_per_s == (VETH if rate is None else rate)


def test_use_of_a_class_is_its_own(peer: int) -> None:
    """Traffic of another class is subtracted from the class above both, not from this one."""
    htb("10")
    found, sent = measured(20, 1000, iface="v0")
    assert found.limit_from == "htb class 1:10 on v0"
    assert found.limit_used_bytes_per_s is not None
    assert found.limit_used_bytes_per_s * found.sampled_s == pytest.approx(sent)
    tc("class change dev v0 parent 1:1 classid 1:10 htb rate 5mbit ceil 99mbit")
    filtered = "filter add dev v0 parent 1: protocol ip u32 match ip dst 10.9.0.2 flowid 1:20"
    has(f"tc {filtered}")
    found, sent = measured(20, 1000, iface="v0")
    assert found.limit_from == "htb class 1:1 on v0"
    assert found.limit_used_bytes_per_s is not None
    assert found.limit_used_bytes_per_s * found.sampled_s == pytest.approx(sent)


def test_a_qdisc_below_a_class_counts(peer: int) -> None:
    htb("10")
    tc("qdisc add dev v0 parent 1:10 handle 10: tbf rate 4mbit burst 1mb latency 1s")
    found = quick(iface="v0")
    assert (found.limit_bytes_per_s, found.limit_from) == (500e3, "tbf 10: on v0")


def test_a_64_bit_rate(peer: int) -> None:
    """A rate from 2^32 bytes per second on, which the kernel reports in another attribute, is read."""
    tc("qdisc add dev v0 root handle 1: htb default 10 r2q 100000")
    tc("class add dev v0 parent 1: classid 1:10 htb rate 1mbit ceil 40gbit")
    assert quick(iface="v0").limit_bytes_per_s is None
    tc("class change dev v0 parent 1: classid 1:10 htb rate 1mbit ceil 8gbit")
    assert quick(iface="v0").limit_bytes_per_s == 1e9


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("fq maxrate 8mbit", 1e6),
        ("fq", None),
        ("cake bandwidth 16mbit", 2e6),
        ("cake unlimited", None),
        ("netem rate 24mbit", 3e6),
    ],
)
def test_other_qdiscs(peer: int, words: str, rate: float | None) -> None:
    has(f"tc qdisc add dev v0 root {words}")
    assert quick(iface="v0").limit_bytes_per_s == rate


# ---- stacked devices ----


def test_a_bridge_sends_through_its_port(peer: int) -> None:
    """The limit, traffic and speed of a bridge are those of its port."""
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "set", "br0", "up")
    ip("addr", "flush", "dev", "v0")
    ip("link", "set", "v0", "master", "br0")
    tc("qdisc add dev v0 root tbf rate 8mbit burst 1mb latency 1s")
    found = quick(iface="br0")
    assert (found.iface, found.speed_from) == ("br0", "v0")
    assert found.speed_bytes_per_s == VETH
    assert found.limit_bytes_per_s == 1e6
    ip("link", "add", "v2", "type", "veth", "peer", "name", "v3")
    ip("link", "set", "v3", "up")
    ip("link", "set", "v2", "master", "br0", "up")
    assert "several ports that packets may leave by (v0, v2)" in refused(iface="br0")


@pytest.mark.parametrize("kind", ["vlan id 5", "macvlan"])
def test_a_device_on_top_has_the_speed_below(peer: int, kind: str) -> None:
    """A device on top of another has its limits, and shares it with all other senders."""
    has(f"ip link add link v0 name upper type {kind}")
    ip("link", "set", "upper", "up")
    tc("qdisc add dev v0 root tbf rate 8mbit burst 1mb latency 1s")
    found, sent = measured(20, 1000, iface="upper")
    assert (found.iface, found.speed_from) == ("upper", "v0")
    assert found.speed_bytes_per_s == VETH
    assert found.used_bytes_per_s * found.sampled_s >= sent - 1
    assert found.limit_bytes_per_s == 1e6
    assert found.limit_from is not None
    assert found.limit_from.endswith(": on v0")


def test_a_bond_has_the_speed_of_its_members(peer: int) -> None:
    has("ip link add bond0 type bond mode balance-rr")
    ip("link", "set", "v0", "down")
    ip("link", "set", "v0", "master", "bond0")
    ip("link", "set", "bond0", "up")
    assert quick(iface="bond0").speed_bytes_per_s == VETH


# ---- refusals ----


def test_no_such_interface(peer: int) -> None:
    assert refused(iface="eth9") == "no interface 'eth9': this machine has v0"


def test_the_loopback_has_no_speed(peer: int) -> None:
    end = "has no speed: give the rate instead: --bandwidth RATE"
    assert refused(iface="lo") == f"lo is the loopback, which {end}"
    for host in ("127.0.0.1", "::1", "10.9.0.1"):
        text = refused(host=host)
        assert text.startswith(f"{host} ({host}) is this machine: ")
        assert text.endswith("which has no speed; give the rate instead: --bandwidth RATE")


def test_an_interface_that_is_down_or_has_no_carrier() -> None:
    ip("link", "add", "v4", "type", "veth", "peer", "name", "v5")
    assert refused(iface="v4").startswith("interface v4 is down: set it up (ip link set v4 up)")
    ip("link", "set", "v4", "up")
    assert refused(iface="v4").startswith("interface v4 has no carrier")


def test_no_route() -> None:
    text = refused(host="203.0.113.9")
    assert text.startswith("there is no route to 203.0.113.9 (203.0.113.9): Network is unreachable")
    assert "check 'ip route'" in text


@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit"])
def test_a_route_that_leads_nowhere(peer: int, kind: str) -> None:
    ip("route", "add", kind, "203.0.113.0/24")
    assert refused(host="203.0.113.9").startswith("there is no route to 203.0.113.9")
    Path("/proc/sys/net/ipv6/conf/v0/disable_ipv6").write_text("0")
    ip("-6", "route", "add", kind, "fd33::/64")
    assert refused(host="fd33::1").startswith("there is no route to fd33::1")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 300, ""])
def test_a_name_that_does_not_resolve(name: str) -> None:
    """A name that does not resolve, in a namespace without a route, is refused."""
    text = refused(host=name)
    assert "does not resolve" in text
    assert "--bandwidth RATE" in text


def test_a_speed_that_is_not_known() -> None:
    require(Path("/dev/net/tun").exists(), "needs /dev/net/tun")
    ip("tuntap", "add", "t0", "mode", "tap")
    with Path("/dev/net/tun").open("r+b", buffering=0) as tun:
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"t0", 0x1002))  # TUNSETIFF, as IFF_TAP
        ip("link", "set", "t0", "up")
        text = refused(iface="t0")
    assert text.startswith("the speed of t0 is not known: a tun device has no speed; give the rate")


def test_invalid_arguments() -> None:
    for iface, host in ((None, None), ("lo", "::1")):
        with pytest.raises(UsageError, match="either an interface or a host"):
            quick(iface, host)
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="must be positive"):
            link_bandwidth(iface="lo", seconds=seconds)


def test_a_link_that_disappears(peer: int) -> None:
    def meanwhile(_: float) -> None:
        ip("link", "del", "v0")

    with pytest.raises(RedirtyError, match="interface v0 was removed: try again"):
        link_bandwidth(iface="v0", seconds=0.001, wait=meanwhile)


def test_a_report_against_a_link(
    peer: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user gets the bandwidth as text, as JSON, and refusals in one line."""
    made = RecordingWriter(tmp_path / "rec", meta())
    made.add(one_round(0, log=pages(16, 17), missed=pages(), present=pages(16)))
    made.close(complete=True)
    tc("qdisc add dev v0 root tbf rate 8mbit burst 1mb latency 1s")
    words = ["report", str(tmp_path / "rec"), "--sample", "1ms"]
    assert main([*words, "--link", "v0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (last,) = (line for line in lines if line.startswith("against"))
    assert last.startswith(
        "against a link of 976.6 KiB/s (8.0 Mbit/s free of v0: 10.0 Gbit/s (reported"
    )
    assert "limited to 8.0 Mbit/s by tbf" in last
    assert last.endswith("with 0 bit/s in use): re-dirtied at 0% of it")
    assert main([*words, "--to", "10.9.0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bandwidth_bytes_per_s"] == found["link"]["free_bytes_per_s"] == 1e6
    assert found["redirtied_pages"] == 1
    assert main([*words, "--link", "lo"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert shown.err.startswith("redirty: lo is the loopback")
