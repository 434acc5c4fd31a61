"""redirty export-criu: exports a mirror as CRIU page images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EPILOG = """\
Writes inventory.img, pagemap-PID.img and pages-N.img, which crit reads and which CRIU accepts as a parent
(criu dump --track-mem --prev-images-dir). CRIU takes pages from the parent if their soft-dirty bit is clear,
that is, if they were not written since the bits were last cleared: a mirror armed by soft-dirty clears them.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty export-criu DIR [-o OUT]"
    parser.epilog = _EPILOG
    parser.add_argument("directory", metavar="DIR", help="directory of a mirror")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="new directory for the images (default: DIR/criu)"
    )


def run(options: argparse.Namespace) -> int:
    """Export a mirror."""
    from redirty.collector.mirror.export.criu import export
    from redirty.collector.units import show_pages

    directory = Path(options.directory)
    to = Path(options.output) if options.output else directory / "criu"
    pages = export(directory, to)
    print(f"redirty: {show_pages(pages)} of pages written to {to}", file=sys.stderr)
    return 0
