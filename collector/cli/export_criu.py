"""redirty export-criu: a mirror as CRIU's page images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EPILOG = """\
Writes inventory.img, pagemap-PID.img and pages-N.img, which crit shows and which CRIU takes as a parent
(criu dump --track-mem --prev-images-dir). CRIU leaves to a parent what its soft-dirty bits call
unwritten, and these count from when they were cleared last: a mirror that was armed by soft-dirty did that.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = "redirty export-criu DIR [-o OUT]"
    parser.epilog = _EPILOG
    parser.add_argument("directory", metavar="DIR", help="a mirror")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="the images, a new directory (default: DIR/criu)"
    )


def run(options: argparse.Namespace) -> int:
    """Exports."""
    from redirty.collector.mirror.export.criu import export
    from redirty.collector.units import show_pages

    directory = Path(options.directory)
    to = Path(options.output) if options.output else directory / "criu"
    pages = export(directory, to)
    print(f"redirty: {show_pages(pages)} of pages in {to}", file=sys.stderr)
    return 0
