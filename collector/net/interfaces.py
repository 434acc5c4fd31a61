"""Interfaces: which there are, what lies below one, and the way to a host."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.net import ethtool, qdisc

TYPE_IT = "type the rate instead: --bandwidth RATE"
_UP, _LOOPBACK = 0x1, 0x8  # linux/if.h
_UNICAST, _LOCAL = 1, 2  # linux/rtnetlink.h, RTN_*
# IFLA_LINK of these names the device they send through; of a veth it is the other end.
_STACKED = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "vxlan", "macsec"})
_GATHERING = frozenset({"bridge", "bond", "team"})
# What these report is no property of any wire: tun says 10 Mb/s unless told otherwise.
_MADE_UP = frozenset({"tun"})
_VIRTUAL = frozenset({"veth", "tun", "dummy", "ifb", "vxlan", "geneve", "gre", "gretap"})
_DEEPEST = 8


@dataclass(frozen=True)
class Interface:
    """kind: the kernel's name for its type, '' of hardware. below, master: numbers of other
    interfaces, 0 for none. tx_bytes: sent since it was made."""

    index: int
    name: str
    kind: str
    flags: int
    carrier: bool
    below: int
    master: int
    tx_bytes: int
    other_names: tuple[str, ...] = ()


class Kernel:
    """The kernel's own word on links, routes and qdiscs, by rtnetlink. Use as a context.

    Errors: RedirtyError when the kernel refuses.
    """

    def __init__(self) -> None:
        from pyroute2 import IPRoute

        with _told("the kernel does not tell of its links"):
            self._route: Any = IPRoute()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()

    def interfaces(self) -> list[Interface]:
        """All of this network namespace."""
        with _told("the kernel does not tell of its links"):
            return [_interface(message) for message in self._route.get_links()]

    def limits(self, index: int) -> list[qdisc.Limit]:
        """What its qdiscs hold an interface to."""
        with _told("the kernel does not tell of its qdiscs"):
            # the kernel gives those of all interfaces, whichever was asked for
            qdiscs = [m for m in self._route.get_qdiscs() if m["index"] == index]
            classes = [m for m in self._route.get_classes(index=index) if m["index"] == index]
        return qdisc.limits([_entry(m) for m in qdiscs], [_entry(m) for m in classes])

    def speed(self, interface: Interface) -> float | None:
        """Bytes per second; None when nothing is known."""
        return None if interface.kind in _MADE_UP else ethtool.speed(interface.name)

    def way_to(self, host: str) -> int:
        """The number of the interface that packets to a host leave by.

        host: a name, or an address of IPv4 or IPv6 (fe80::1%eth0). Errors: RedirtyError.
        """
        problem = f"{host} has no address that can be routed to"
        for family, address, scope in _addresses(host):
            asked: dict[str, Any] = {"dst": address, "family": family}
            if scope:
                asked["oif"] = scope
            try:
                with _told(f"there is no route to {host} ({address})"):
                    answer = next(iter(self._route.route("get", **asked)))
            except RedirtyError as e:
                problem = str(e)
                continue
            if answer["type"] == _LOCAL:
                raise RedirtyError(
                    f"{host} ({address}) is this machine itself: what is sent there goes over the "
                    f"loopback, which has no speed; {TYPE_IT}"
                )
            out = answer.get_attr("RTA_OIF")
            if answer["type"] == _UNICAST and out:
                return int(out)
            problem = f"there is no route to {host} ({address})"
        raise RedirtyError(f"{problem}: look at 'ip route', or {TYPE_IT}")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Around a question to the kernel: its refusal as a line for a person."""
    try:
        yield
    except OSError as e:
        raise RedirtyError(f"{what}: {why(e)}") from None
    except Exception as e:
        code = getattr(e, "code", None)  # NetlinkError, which is no OSError
        if not isinstance(code, int):
            raise
        import os

        raise RedirtyError(f"{what}: {why(OSError(code, os.strerror(code)))}") from None


def _interface(message: Any) -> Interface:
    info = message.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
    # below it in another namespace: that number would name something else here
    elsewhere = message.get_attr("IFLA_LINK_NETNSID") is not None
    below = 0 if elsewhere or kind not in _STACKED else message.get_attr("IFLA_LINK") or 0
    names = message.get_attr("IFLA_PROP_LIST")
    others = [] if names is None else names.get_attrs("IFLA_ALT_IFNAME")
    stats = message.get_attr("IFLA_STATS64") or message.get_attr("IFLA_STATS") or {"tx_bytes": 0}
    return Interface(
        index=int(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME")),
        kind=kind,
        flags=int(message["flags"]),
        # not IFLA_OPERSTATE, which follows up to a second later
        carrier=message.get_attr("IFLA_CARRIER") != 0,
        below=int(below),
        master=int(message.get_attr("IFLA_MASTER") or 0),
        tx_bytes=int(stats["tx_bytes"]),
        other_names=tuple(map(str, others)),
    )


def _entry(message: Any) -> qdisc.Entry:
    at = message.offset
    return qdisc.decode(bytes(message.data[at : at + message["header"]["length"]]))


def _addresses(host: str) -> list[tuple[int, str, int]]:
    """(family, address, number of the interface or 0), the ones to try first first."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:  # the latter of a name too long, or with an empty part
        reason = (e.strerror if isinstance(e, OSError) else "") or "it is no name of a host"
        raise RedirtyError(
            f"{host!r} does not resolve: {reason}; give an address, or {TYPE_IT}"
        ) from None
    wanted = []
    for family, _, _, _, where in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            scope = int(where[3]) if len(where) == 4 else 0
            wanted.append((int(family), str(where[0]).partition("%")[0], scope))
    return wanted


def find(interfaces: list[Interface], name: str) -> Interface:
    """The interface of a name. Errors: RedirtyError."""
    for interface in interfaces:
        if name == interface.name or name in interface.other_names:
            return interface
    known = ", ".join(i.name for i in interfaces if not i.flags & _LOOPBACK) or "only the loopback"
    raise RedirtyError(f"there is no interface {name!r} here: there is {known}")


def usable(interface: Interface) -> None:
    """Errors: RedirtyError for one that cannot send, or whose speed means nothing."""
    name = interface.name
    if interface.flags & _LOOPBACK:
        raise RedirtyError(f"{name} is the loopback, which has no speed: {TYPE_IT}")
    if not interface.flags & _UP:
        raise RedirtyError(
            f"interface {name} is down: set it up (ip link set {name} up), or {TYPE_IT}"
        )
    if not interface.carrier:
        raise RedirtyError(
            f"interface {name} has no carrier (no cable, or its other end is down): connect it, "
            f"or {TYPE_IT}"
        )


def path_down(
    kernel: Kernel, interfaces: list[Interface], top: Interface
) -> tuple[list[Interface], float]:
    """The devices that what an interface sends goes through, itself first, down to the one whose
    speed is known; and that speed in bytes per second.

    Of a bridge or a bond without a speed of its own, that is the one port that is hardware.
    Errors: RedirtyError when no speed is known, with what to do.
    """
    path = [top]
    while len(path) < _DEEPEST:
        here = path[-1]
        below = [i for i in interfaces if i.index == here.below and i not in path]
        # The kernel would tell a bridge's fastest port, which may be a veth, and of a VLAN what is
        # below it, which others send through too.
        asked = here.kind != "bridge" and not below
        speed = kernel.speed(here) if asked else None
        if speed is not None:
            return path, speed
        if here.kind in _GATHERING:
            below = _ports(interfaces, here)
        if not below:
            raise RedirtyError(_unknown(top, here))
        if len(below) > 1:
            names = ", ".join(i.name for i in below)
            raise RedirtyError(
                f"{here.name} has several ports that may be the way out ({names}): name one with "
                f"--link, or {TYPE_IT}"
            )
        path.append(below[0])
    raise RedirtyError(_unknown(top, path[-1]))


def _ports(interfaces: list[Interface], gathering: Interface) -> list[Interface]:
    """Ports that are up: those of hardware where there are any."""
    ports = [i for i in interfaces if i.master == gathering.index and i.flags & _UP]
    ports = [i for i in ports if i.carrier]
    return [i for i in ports if i.kind not in _VIRTUAL] or ports


def _unknown(top: Interface, lowest: Interface) -> str:
    through = "" if lowest is top else f" (which sends through {lowest.name})"
    kind = f"a {lowest.kind} device" if lowest.kind else "its driver"
    tells = "has none" if lowest.kind else "does not tell (as of wifi and many virtual machines)"
    return f"the speed of {top.name}{through} is not known: {kind} {tells}; {TYPE_IT}"


def is_virtual(interface: Interface) -> bool:
    """Whether a speed it reports is that of no wire: a veth says 10 Gb/s, whatever it can do."""
    return interface.kind in _VIRTUAL
