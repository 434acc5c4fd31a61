"""What a link has left for a mirror: its speed, less what uses it now, less what holds it back."""

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
    """A link, measured for sampled_s seconds. All rates in bytes per second, as interfaces count
    bytes: with Ethernet headers, so that TCP with frames of 1500 bytes carries about 5 % less.

    iface: what packets leave by. speed_from: the device whose speed counts, which is another one
    below a VLAN or a bridge. speed_bytes_per_s: of it. used_bytes_per_s: sent over it by all.
    limit_bytes_per_s: the qdisc that leaves least, where it leaves less than the link; else None.
    limit_from: which one, for a person. limit_used_bytes_per_s: what went through it.
    free_bytes_per_s: what is left, never below 0. virtual: its speed is that of no wire.
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
    """The bandwidth that an interface, or the way to a host, has left.

    seconds: how long its use is measured. wait: waits so long.
    Errors: UsageError unless exactly one of iface and host is given and seconds is above 0;
    RedirtyError when there is no such interface or route, a name does not resolve, the interface
    is down, or no speed is known.
    Source: rtnetlink (routes, IFLA_STATS64, qdiscs and classes) and ETHTOOL_GLINKSETTINGS.
    """
    if (iface is None) == (host is None):
        raise UsageError("give an interface or a host, one of the two")
    if not 0 < seconds < float("inf"):
        raise UsageError("the time to measure a link for must be more than 0")
    with Kernel() as kernel:
        there = kernel.interfaces()
        if host is not None:
            index = kernel.way_to(host)
            top = next((i for i in there if i.index == index), None)
            if top is None:
                raise RedirtyError(f"the way to {host} changed just now: try again")
        else:
            top = interfaces.find(there, iface or "")
        interfaces.usable(top)
        path, speed = interfaces.path_down(kernel, there, top)
        before, begun = _counts(kernel, path), time.monotonic()
        wait(seconds)
        after, ended = _counts(kernel, path), time.monotonic()
    return summarise(path, speed, before, after, ended - begun)


@dataclass(frozen=True)
class LinkCounters:
    """sent: by number of the interface. limits: with the interface each is on."""

    sent: dict[int, int]
    limits: dict[str, Limit]


def _counts(kernel: Kernel, path: list[Interface]) -> LinkCounters:
    now = {i.index: i for i in kernel.interfaces()}
    for interface in path:
        if interface.index not in now:
            raise RedirtyError(f"interface {interface.name} went away: try again, or {TYPE_IT}")
    limits = {
        f"{limit.what} on {interface.name}": limit
        for interface in path
        for limit in kernel.limits(interface.index)
    }
    return LinkCounters({i.index: now[i.index].tx_bytes for i in path}, limits)


def summarise(
    path: list[Interface], speed: float, before: LinkCounters, after: LinkCounters, elapsed_s: float
) -> LinkBandwidth:
    """What two looks at a path, elapsed_s seconds apart, say of it. Pure.

    path: itself first, the device of the speed (bytes per second) last.
    """
    base = path[-1]
    # A counter that was reset in between tells nothing.
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
