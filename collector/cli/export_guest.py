"""redirty export-guest: exports the guest memory of a mirrored QEMU as a raw image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty export-guest DIR [-o FILE]"
    parser.add_argument("directory", metavar="DIR", help="directory of a mirror of a QEMU")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="new file for the image (default: DIR/guest.raw)"
    )


def run(options: argparse.Namespace) -> int:
    """Export the guest memory."""
    from redirty.collector.mirror.export.guest_ram import export
    from redirty.collector.units import show_bytes

    directory = Path(options.directory)
    to = Path(options.output) if options.output else directory / "guest.raw"
    size, addresses_known = export(directory, to)
    if not addresses_known:
        print(
            "redirty: guest-physical addresses are unknown, as the mirror was made without --qmp: the image is the "
            "largest RAM block alone",
            file=sys.stderr,
        )
    print(f"redirty: {show_bytes(size)} of guest memory written to {to}", file=sys.stderr)
    return 0
