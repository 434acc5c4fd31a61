"""Free bandwidth of a link: its speed, less its current use, or what its qdiscs leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.net import interfaces
from redirty.collector.net.interfaces import TYPE_IT, Interface, Kernel
from redirty.collector.net.qdisc import Limit


@dataclass(frozen=True)
class LinkBandwidth:
    """A measured link.

    All rates are in bytes per second, as interfaces count bytes: with Ethernet headers, so that TCP
    with frames of 1500 bytes carries about 5 % less.

    Attributes:
        iface: The interface by which packets leave.
        speed_bytes_per_s: Speed of the device speed_from.
        speed_from: The device whose speed counts; not iface itself below a VLAN or a bridge.
        used_bytes_per_s: Rate at which all programs send over that device.
        limit_bytes_per_s: Rate of the qdisc that leaves least, if it leaves less than the link.
        limit_from: That qdisc, human-readable.
        limit_used_bytes_per_s: Rate that passes through it.
        free_bytes_per_s: Free bandwidth, never below 0.
        sampled_s: How long the use was measured.
        virtual: Whether the speed is not that of a wire.
    """

    iface: str
    speed_bytes_per_s: float
    speed_from: str
    used_bytes_per_s: float
    limit_bytes_per_s: float | None
    limit_from: str | None
    limit_used_bytes_per_s: float | None
    free_bytes_per_s: float
    sampled_s: float
    virtual: bool


def link_bandwidth(
    *,
    iface: str | None = None,
    host: str | None = None,
    seconds: float = 1.0,
    wait: Callable[[float], object] = time.sleep,
) -> LinkBandwidth:
    """Measure the free bandwidth of an interface, or of the route to a host.

    Source: rtnetlink (routes, IFLA_STATS64, qdiscs and classes) and ETHTOOL_GLINKSETTINGS.

    Args:
        iface: Name of the interface.
        host: Name or address of the host; exactly one of iface and host.
        seconds: How long the use is measured.
        wait: Waits for a number of seconds.

    Raises:
        UsageError: Not exactly one of iface and host is given, or seconds is not positive.
        RedirtyError: There is no such interface or route, a name does not resolve, the interface is
            down, or no speed is known.
    """
    if (iface is None) == (host is None):
        raise UsageError("specify either an interface or a host")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"the time to measure a link must be positive, got {seconds}s")
    with Kernel() as kernel:
        interfaces_now = kernel.interfaces()
        if host is not None:
            index = kernel.route_to(host)
            top = next((i for i in interfaces_now if i.index == index), None)
            if top is None:
                raise RedirtyError(f"the route to {host} has just changed: try again")
        else:
            top = interfaces.find(interfaces_now, iface or "")
        interfaces.require_usable(top)
        path, speed = interfaces.path_down(kernel, interfaces_now, top)
        before, started = _counts(kernel, path), time.monotonic()
        wait(seconds)
        after, ended = _counts(kernel, path), time.monotonic()
    return summarize(path, speed, before, after, ended - started)


@dataclass(frozen=True)
class LinkCounters:
    """Counters of a path.

    Attributes:
        sent: Bytes sent, by index of the interface.
        limits: Qdiscs that limit it, by their description and interface.
    """

    sent: dict[int, int]
    limits: dict[str, Limit]


def _counts(kernel: Kernel, path: list[Interface]) -> LinkCounters:
    now = {i.index: i for i in kernel.interfaces()}
    for interface in path:
        if interface.index not in now:
            raise RedirtyError(f"interface {interface.name} was removed: try again, or {TYPE_IT}")
    limits = {
        f"{limit.what} on {interface.name}": limit
        for interface in path
        for limit in kernel.limits(interface.index)
    }
    return LinkCounters({i.index: now[i.index].tx_bytes for i in path}, limits)


def summarize(
    path: list[Interface], speed: float, before: LinkCounters, after: LinkCounters, elapsed_s: float
) -> LinkBandwidth:
    """Compute the free bandwidth of a path from two readings of its counters. Pure.

    Args:
        path: The interface first, the device that has the speed last.
        speed: Speed of that device in bytes per second.
        before: First reading.
        after: Second reading.
        elapsed_s: Time between them.
    """
    base = path[-1]
    # A counter that was reset in between is useless.
    used = max(0, after.sent[base.index] - before.sent[base.index]) / elapsed_s
    free = max(0.0, speed - used)
    tightest: tuple[float, str, float] | None = None
    for name, limit in after.limits.items():
        old = before.limits.get(name)
        through = max(0, limit.sent_bytes - old.sent_bytes) / elapsed_s if old else 0.0
        left = max(0.0, limit.rate - through)
        if limit.rate < speed and left < free:
            free, tightest = left, (limit.rate, name, through)
    return LinkBandwidth(
        iface=path[0].name,
        speed_bytes_per_s=speed,
        speed_from=base.name,
        used_bytes_per_s=used,
        limit_bytes_per_s=tightest[0] if tightest else None,
        limit_from=tightest[1] if tightest else None,
        limit_used_bytes_per_s=tightest[2] if tightest else None,
        free_bytes_per_s=free,
        sampled_s=elapsed_s,
        virtual=interfaces.is_virtual(base),
    )
