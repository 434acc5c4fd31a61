"""Fills a wheelhouse for machines without a network: the packages that `make setup` takes from PyPI."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from vagrant.commands import BUILD, PROJECT, StepError, run

WHEELS = BUILD / "wheels"
LOCK = PROJECT / ".ci/lock/test.txt"  # has the packages of the other levels, too
PYTHON = "3.11"  # of the box, see rootfs.SUITE
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (36, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64"]


def download() -> Path:
    """Download the wheels, unless those of the same lock exist; return their directory.

    Raises:
        StepError: pip failed.
    """
    stamp = WHEELS / "requirements"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return WHEELS
    shutil.rmtree(WHEELS, ignore_errors=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    kind = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    pip = [str(PROJECT / ".venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
    wanted = ["--require-hashes", "--no-deps", "--requirement", str(LOCK)]
    run([*pip, "download", "--quiet", "--dest", str(WHEELS), *kind, *platforms, *wanted])
    stamp.write_text(digest)
    return WHEELS


def main() -> int:
    """Download the wheels and print their directory; return the exit code."""
    try:
        print(download())
    except (StepError, OSError) as error:
        print(f"redirty: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
