"""The arguments that name a bandwidth, the same for every verb that takes one: typed, or that of a
link of this machine."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.units import parse_rate, parse_time, show_bits, show_time

if TYPE_CHECKING:
    from redirty.collector.net.link import LinkBandwidth

_SAMPLE_S = 1.0


@dataclass(frozen=True)
class Bandwidth:
    """bytes_per_s: what is free. said: where it comes from, a line for a person. link: as it was
    measured; None when the rate was typed."""

    bytes_per_s: float
    said: str
    link: LinkBandwidth | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs; the link's values, all in bytes per second, under `link`."""
        link = None if self.link is None else dict(vars(self.link))
        return {"bandwidth_bytes_per_s": self.bytes_per_s, "link": link}


def add_bandwidth(parser: argparse.ArgumentParser, why: str, *, required: bool = False) -> None:
    """--bandwidth RATE, --link IFACE or --to HOST, and --sample TIME for the latter two.

    why: what it is for, as the heading's text.
    """
    group = parser.add_argument_group("bandwidth", why)
    one = group.add_mutually_exclusive_group(required=required)
    one.add_argument(
        "--bandwidth", metavar="RATE", help="typed: 10Gbit, 1.25GB, 200MiB (per second)"
    )
    one.add_argument(
        "--link", metavar="IFACE", help="what this interface has left: speed, use, qdisc limits"
    )
    one.add_argument(
        "--to", metavar="HOST", help="what the interface that leads to this host has left"
    )
    group.add_argument(
        "--sample", metavar="TIME", help="how long a link's use is measured: 500ms, 5s (default 1s)"
    )


def bandwidth_of(options: argparse.Namespace) -> Bandwidth | None:
    """The bandwidth that was asked for; None when none was. Takes as long as --sample says for a
    link.

    Errors: UsageError; RedirtyError when a link's speed is not known, or it has nothing left.
    """
    measured = options.link is not None or options.to is not None
    sample_s = _SAMPLE_S if options.sample is None else parse_time(options.sample)
    if options.sample is not None and not measured:
        raise UsageError("--sample is how long a link is measured: it needs --link or --to")
    if options.bandwidth is not None:
        rate = parse_rate(options.bandwidth)
        return Bandwidth(rate, f"{show_bits(rate)}, as given")
    if not measured:
        return None
    if sample_s <= 0:
        raise UsageError("--sample must be more than 0")
    from redirty.collector.net.link import link_bandwidth

    link = link_bandwidth(iface=options.link, host=options.to, seconds=sample_s)
    if link.free_bytes_per_s <= 0:
        raise RedirtyError(
            f"nothing is left of {_said(link)}: stop what sends, measure for longer (--sample), or "
            "type a rate: --bandwidth RATE"
        )
    return Bandwidth(link.free_bytes_per_s, _said(link), link)


def _said(link: LinkBandwidth) -> str:
    """'900.0 Mbit/s free of eth0: 1.0 Gbit/s, 100.0 Mbit/s in use over the last 1.0 s'."""
    through = "" if link.speed_from == link.iface else f" through {link.speed_from}"
    made_up = " (as a virtual device reports, no wire's)" if link.virtual else ""
    said = (
        f"{show_bits(link.free_bytes_per_s)} free of {link.iface}{through}: "
        f"{show_bits(link.speed_bytes_per_s)}{made_up}, {show_bits(link.used_bytes_per_s)} in use "
        f"over {show_time(link.sampled_s)}"
    )
    if link.limit_bytes_per_s is not None:
        said += (
            f", held to {show_bits(link.limit_bytes_per_s)} by {link.limit_from} with "
            f"{show_bits(link.limit_used_bytes_per_s or 0.0)} in use"
        )
    return said
