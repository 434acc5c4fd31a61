"""Network interfaces: their list, the devices below one, and the route to a host."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.net import ethtool, qdisc

TYPE_IT = "give the rate instead: --bandwidth RATE"
_UP, _LOOPBACK = 0x1, 0x8  # linux/if.h
_UNICAST, _LOCAL = 1, 2  # linux/rtnetlink.h, RTN_*
# IFLA_LINK of these kinds is the device they send through; of a veth it is the other end.
_STACKED = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "vxlan", "macsec"})
_AGGREGATES = frozenset({"bridge", "bond", "team"})
# The speed that these report is not that of a wire: tun reports 10 Mb/s unless configured.
_NO_REAL_SPEED = frozenset({"tun"})
_VIRTUAL = frozenset({"veth", "tun", "dummy", "ifb", "vxlan", "geneve", "gre", "gretap"})
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Interface:
    """An interface.

    Attributes:
        index: Its index.
        name: Its name.
        kind: The kernel's name of its type; empty for hardware.
        flags: IFF_* flags.
        carrier: Whether it has a carrier.
        below: Index of the device that it sends through, 0 for none.
        master: Index of the bridge or bond that it is a port of, 0 for none.
        tx_bytes: Bytes sent since it was created.
        other_names: Alternative names.
    """

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
    """Links, routes and qdiscs of the kernel, by rtnetlink. Use it as a context manager.

    Raises:
        RedirtyError: The kernel refuses; also by every method.
    """

    def __init__(self) -> None:
        from pyroute2 import IPRoute

        with _kernel_errors("the kernel does not list its links"):
            self._route: Any = IPRoute()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()

    def interfaces(self) -> list[Interface]:
        """List the interfaces of this network namespace."""
        with _kernel_errors("the kernel does not list its links"):
            return [_interface(message) for message in self._route.get_links()]

    def limits(self, index: int) -> list[qdisc.Limit]:
        """Return the limits that an interface's qdiscs set."""
        with _kernel_errors("the kernel does not list its qdiscs"):
            # the kernel lists those of all interfaces, whichever was requested
            qdiscs = [m for m in self._route.get_qdiscs() if m["index"] == index]
            classes = [m for m in self._route.get_classes(index=index) if m["index"] == index]
        return qdisc.limits([_entry(m) for m in qdiscs], [_entry(m) for m in classes])

    def speed(self, interface: Interface) -> float | None:
        """Return the speed of an interface in bytes per second; None if unknown."""
        return None if interface.kind in _NO_REAL_SPEED else ethtool.speed(interface.name)

    def route_to(self, host: str) -> int:
        """Return the index of the interface by which packets to a host leave.

        Args:
            host: A name, or an address of IPv4 or IPv6 (fe80::1%eth0).

        Raises:
            RedirtyError: There is no route, or the host is this machine.
        """
        problem = f"{host} has no address that can be routed to"
        for family, address, scope in _addresses(host):
            request: dict[str, Any] = {"dst": address, "family": family}
            if scope:
                request["oif"] = scope
            try:
                with _kernel_errors(f"there is no route to {host} ({address})"):
                    answer = next(iter(self._route.route("get", **request)))
            except RedirtyError as e:
                problem = str(e)
                continue
            if answer["type"] == _LOCAL:
                raise RedirtyError(
                    f"{host} ({address}) is this machine: packets to it go over the "
                    f"loopback, which has no speed; {TYPE_IT}"
                )
            out = answer.get_attr("RTA_OIF")
            if answer["type"] == _UNICAST and out:
                return int(out)
            problem = f"there is no route to {host} ({address})"
        raise RedirtyError(f"{problem}: check 'ip route', or {TYPE_IT}")


@contextlib.contextmanager
def _kernel_errors(what: str) -> Iterator[None]:
    """Convert an error of the kernel to a RedirtyError that says what failed."""
    try:
        yield
    except OSError as e:
        raise RedirtyError(f"{what}: {why(e)}") from None
    except Exception as e:
        code = getattr(e, "code", None)  # NetlinkError, which is not an OSError
        if not isinstance(code, int):
            raise
        import os

        raise RedirtyError(f"{what}: {why(OSError(code, os.strerror(code)))}") from None


def _interface(message: Any) -> Interface:
    info = message.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
    # if the device below is in another namespace, its index would be of another device here
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
        # not IFLA_OPERSTATE, which is updated up to a second later
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
    """Resolve a host to (family, address, index of the interface or 0), in the order to try."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:  # the latter for a name too long, or with an empty part
        reason = (e.strerror if isinstance(e, OSError) else "") or "not a host name"
        raise RedirtyError(
            f"{host!r} does not resolve: {reason}; give an address, or {TYPE_IT}"
        ) from None
    addresses = []
    for family, _, _, _, where in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            scope = int(where[3]) if len(where) == 4 else 0
            addresses.append((int(family), str(where[0]).partition("%")[0], scope))
    return addresses


def find(interfaces: list[Interface], name: str) -> Interface:
    """Return the interface with a name.

    Raises:
        RedirtyError: There is no such interface.
    """
    for interface in interfaces:
        if name == interface.name or name in interface.other_names:
            return interface
    known = ", ".join(i.name for i in interfaces if not i.flags & _LOOPBACK) or "only the loopback"
    raise RedirtyError(f"no interface {name!r}: this machine has {known}")


def require_usable(interface: Interface) -> None:
    """Check that an interface can send and has a speed.

    Raises:
        RedirtyError: It is the loopback, is down, or has no carrier.
    """
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
    """Find the devices that an interface sends through, down to the one whose speed is known.

    Of a bridge or a bond without a speed of its own, that is the only port that is hardware.

    Returns:
        The devices, the interface first; and the speed in bytes per second.

    Raises:
        RedirtyError: No speed is known; the message says what to do.
    """
    path = [top]
    while len(path) < _MAX_DEPTH:
        here = path[-1]
        below = [i for i in interfaces if i.index == here.below and i not in path]
        # The kernel would report the fastest port of a bridge, which may be a veth, and for a VLAN
        # the device below it, which others send through, too.
        has_own = here.kind != "bridge" and not below
        speed = kernel.speed(here) if has_own else None
        if speed is not None:
            return path, speed
        if here.kind in _AGGREGATES:
            below = _ports(interfaces, here)
        if not below:
            raise RedirtyError(_unknown(top, here))
        if len(below) > 1:
            names = ", ".join(i.name for i in below)
            raise RedirtyError(
                f"{here.name} has several ports that packets may leave by ({names}): name one with "
                f"--link, or {TYPE_IT}"
            )
        path.append(below[0])
    raise RedirtyError(_unknown(top, path[-1]))


def _ports(interfaces: list[Interface], aggregate: Interface) -> list[Interface]:
    """Return the ports that are up: those that are hardware if there are any."""
    ports = [i for i in interfaces if i.master == aggregate.index and i.flags & _UP]
    ports = [i for i in ports if i.carrier]
    return [i for i in ports if i.kind not in _VIRTUAL] or ports


def _unknown(top: Interface, lowest: Interface) -> str:
    through = "" if lowest is top else f" (which sends through {lowest.name})"
    kind = f"a {lowest.kind} device" if lowest.kind else "its driver"
    reason = (
        "has no speed" if lowest.kind else "reports no speed (as wifi and many virtual machines)"
    )
    return f"the speed of {top.name}{through} is not known: {kind} {reason}; {TYPE_IT}"


def is_virtual(interface: Interface) -> bool:
    """Return whether the reported speed is not that of a wire: a veth always reports 10 Gb/s."""
    return interface.kind in _VIRTUAL
