"""Arguments that name a bandwidth, common to several commands: a given rate, or that of a link."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.units import parse_positive_time, parse_rate, show_bits, show_time

if TYPE_CHECKING:
    from redirty.collector.model.prediction import CopierSpeed
    from redirty.collector.net.link import LinkBandwidth

_SAMPLE_S = 1.0


@dataclass(frozen=True)
class Bandwidth:
    """A bandwidth from the command line.

    Attributes:
        bytes_per_s: free bandwidth in bytes per second.
        source: its origin, one line for the user.
        link: the measured link; None when the rate was given.
        copier: what the copier reaches here; None: not measured.
        copier_limits: says that this is less than the link carries, and is what bytes_per_s is; empty: it is not.
    """

    bytes_per_s: float
    source: str
    link: LinkBandwidth | None = None
    copier: CopierSpeed | None = None
    copier_limits: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, with the link's values under `link`."""
        link = None if self.link is None else dict(vars(self.link))
        return {"bandwidth_bytes_per_s": self.bytes_per_s, "link": link}


def add_bandwidth(parser: argparse.ArgumentParser, why: str, *, required: bool = False) -> None:
    """Add --bandwidth RATE, --link IFACE and --to HOST, and --sample TIME for the latter two.

    why: what the bandwidth is used for, the text of the heading.
    """
    group = parser.add_argument_group("bandwidth", why)
    one = group.add_mutually_exclusive_group(required=required)
    one.add_argument(
        "--bandwidth", metavar="RATE", help="a rate: 10Gbit, 1.25GB, 200MiB (per second)"
    )
    one.add_argument(
        "--link",
        metavar="IFACE",
        help="the free bandwidth of this interface: by speed, use, qdisc limits",
    )
    one.add_argument(
        "--to", metavar="HOST", help="the free bandwidth of the interface that leads to this host"
    )
    group.add_argument(
        "--sample",
        metavar="TIME",
        help="how long the use of a link is measured: 500ms, 5s (default 1s)",
    )


def bandwidth_of(options: argparse.Namespace) -> Bandwidth | None:
    """Return the requested bandwidth; None when none was requested. Takes --sample for a link.

    Raises: UsageError; RedirtyError when the speed of a link is not known, or none of it is free.
    """
    measured = options.link is not None or options.to is not None
    sample_s = (
        _SAMPLE_S if options.sample is None else parse_positive_time(options.sample, "--sample")
    )
    if options.sample is not None and not measured:
        raise UsageError("--sample sets how long a link is measured: it needs --link or --to")
    if options.bandwidth is not None:
        rate = parse_rate(options.bandwidth, "--bandwidth")
        return Bandwidth(rate, f"{show_bits(rate)}, as given")
    if not measured:
        return None
    from redirty.collector.net.link import link_bandwidth

    link = link_bandwidth(iface=options.link, host=options.to, seconds=sample_s)
    if link.free_bytes_per_s <= 0:
        raise RedirtyError(
            f"no bandwidth is left: {_source(link)}: stop other senders, measure for longer (--sample), or "
            "give a rate: --bandwidth RATE"
        )
    return Bandwidth(link.free_bytes_per_s, _source(link), link)


def _source(link: LinkBandwidth) -> str:
    """Describe a link: '900.0 Mbit/s free of eth0: 1.0 Gbit/s, 100.0 Mbit/s in use over 1.0 s'."""
    through = "" if link.speed_from == link.iface else f" through {link.speed_from}"
    reported = " (reported by a virtual device, not that of a wire)" if link.virtual else ""
    text = (
        f"{show_bits(link.free_bytes_per_s)} free of {link.iface}{through}: "
        f"{show_bits(link.speed_bytes_per_s)}{reported}, {show_bits(link.used_bytes_per_s)} in use "
        f"over {show_time(link.sampled_s)}"
    )
    if link.limit_bytes_per_s is not None:
        text += (
            f", limited to {show_bits(link.limit_bytes_per_s)} by {link.limit_from} with "
            f"{show_bits(link.limit_used_bytes_per_s or 0.0)} in use"
        )
    return text
