"""Fills a wheelhouse for machines without a network: the packages that `make setup` takes from PyPI."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tomllib
from pathlib import Path

from vagrant.commands import BUILD, PROJECT, StepError, run

WHEELS = BUILD / "wheels"
PYTHON = "3.11"  # of the box, see rootfs.SUITE
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (36, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64"]


def requirements() -> list[str]:
    """Return all requirements: of the program, of the tests, and of the build."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted: list[str] = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    return [*wanted, *project["project"]["optional-dependencies"]["dev"], "wheel"]


def download() -> Path:
    """Download the wheels, unless those of the same requirements exist; return their directory.

    Raises:
        StepError: pip failed.
    """
    wanted = requirements()
    stamp = WHEELS / "requirements"
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return WHEELS
    shutil.rmtree(WHEELS, ignore_errors=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    kind = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    pip = [str(PROJECT / ".venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
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
