"""The argument that names where a mirror would go, whose copier may be slower than the link."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from redirty.collector.cli.arguments.bandwidth import Bandwidth
from redirty.collector.cli.arguments.question import DEFAULT_POLICY
from redirty.collector.errors import UsageError
from redirty.collector.units import show_bits, show_bytes

if TYPE_CHECKING:
    from redirty.collector.mirror.calibration.copier import Kind

_DEFAULT = "tls"  # how a mirror goes to another machine


def add_destination(parser: argparse.ArgumentParser) -> None:
    """Add --destination."""
    parser.add_argument(
        "--destination",
        metavar="KIND",
        help="where redirty mirror would copy to: local, local:DIR, tcp, tls, tcp+zstd or tls+zstd; its speed there is "
        "measured for a second, and counts where it is below the bandwidth (default: tls with a target, --link or "
        "--to; otherwise the bandwidth alone counts)",
    )


def destination_of(options: argparse.Namespace, *, live: bool) -> Kind | None:
    """Return the kind of destination whose speed counts; None: the bandwidth alone counts.

    Args:
        options: the command line.
        live: a target of this machine is predicted, and not a recording, which may be of another one.

    Raises:
        UsageError: it is not valid, or does not go with the policy.
    """
    ours = options.policy in (None, DEFAULT_POLICY)
    if options.destination is not None and not ours:
        raise UsageError(
            f"--destination is for the policy {DEFAULT_POLICY}, whose copier is redirty's own; the policy is "
            f"{options.policy}"
        )
    measured = live or options.link is not None or options.to is not None
    if not ours or not (measured or options.destination is not None):
        return None
    from redirty.collector.mirror.calibration.copier import parse_kind

    return parse_kind(
        _DEFAULT if options.destination is None else options.destination, "--destination"
    )


def as_copied(
    bandwidth: Bandwidth, kind: Kind | None, pages: Callable[[], bytes], ratio: float | None
) -> Bandwidth:
    """Return the bandwidth, or what the copier reaches here where that is less.

    Args:
        bandwidth: of the link.
        kind: the destination; None: the bandwidth alone counts.
        pages: returns pages like those that will be copied, if there are any; called for a compressed destination.
        ratio: of the compression, as given; None: as measured with such pages, else not counted.

    Raises:
        RedirtyError: the copier's speed cannot be measured.
    """
    if kind is None:
        return bandwidth
    from redirty.collector.mirror.calibration.copier import copier_speed

    speed = copier_speed(kind, pages() if kind.compressed else b"")
    if kind.compressed and ratio is not None:
        speed = replace(speed, ratio=ratio)
    rate = speed.bytes_per_s / (speed.ratio or 1.0)
    if rate >= bandwidth.bytes_per_s:
        return replace(bandwidth, copier=speed)
    text = (
        f"limited by the copier: {show_bytes(speed.bytes_per_s)}/s {kind} here, as measured now; the link would carry "
        f"{show_bits(bandwidth.bytes_per_s)}"
    )
    return replace(bandwidth, bytes_per_s=rate, copier=speed, copier_limits=text)
