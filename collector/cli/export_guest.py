"""redirty export-guest: the guest's memory of a mirrored QEMU, as a raw image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = "redirty export-guest DIR [-o FILE]"
    parser.add_argument("directory", metavar="DIR", help="a mirror of a QEMU")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the image, a new file (default: DIR/guest.raw)"
    )


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from redirty.collector.mirror.export.guest_ram import export
    from redirty.collector.units import show_bytes

    directory = Path(options.directory)
    to = Path(options.output) if options.output else directory / "guest.raw"
    size, placed = export(directory, to)
    if not placed:
        print(
            "redirty: this mirror was made without --qmp, which tells where in the guest memory lies: the image is "
            "its largest block alone",
            file=sys.stderr,
        )
    print(f"redirty: {show_bytes(size)} of guest memory in {to}", file=sys.stderr)
    return 0
