"""Pin what .ci/setup installs from PyPI, with the hash of each file: .ci/lock/LEVEL.txt.

    lock.py [PYTHON ...]    interpreters with pip, the oldest first; without: those below

Versions are what pip takes for the requirements of pyproject.toml with the oldest interpreter: use Debian 12's, as
a later patch level may get packages that refuse it. Hashes are of the wheels for x86-64 that each interpreter takes
of these versions. Run it to move to newer versions, and review the difference as a change of the program.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
DIRECTORY = PROJECT / ".ci/lock"
PYTHONS = ("/usr/bin/python3.11", "python3.12", "python3.13")
LATER = ("3.14",)  # whose wheels are taken without an interpreter: the packages of the newest one
_TAGS = [f"manylinux_2_{minor}_x86_64" for minor in (36, 34, 31, 28, 27, 26, 24, 17, 12)]
PLATFORMS = [f"--platform={tag}" for tag in (*_TAGS, "manylinux2014_x86_64", "linux_x86_64")]


def requirements(level: str) -> list[str]:
    """Return the requirements of a level of .ci/setup, with those of the build."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]
    names = {"run": (), "docs": ("docs",), "test": ("dev", "docs")}[level]
    more = [requirement for name in names for requirement in extra[name]]
    return [*project["build-system"]["requires"], *project["project"]["dependencies"], *more]


def resolve(
    python: str, wanted: list[str], versions: dict[str, str], *options: str
) -> dict[str, tuple[str, str]]:
    """Ask pip what it would install, at these versions as far as they are given; return (version, SHA-256) by name."""
    pip = [python, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    pip += ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", "-", *options]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.writelines(f"{name}=={version}\n" for name, version in versions.items())
        pins.flush()
        command = [*pip, "--constraint", pins.name, *wanted]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return {
        re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in report["install"]
    }


def version_of(python: str) -> str:
    """Return the version of an interpreter, as in the marker python_version."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-I", "-c", code], text=True).strip()


def lock(pythons: list[str], wanted: list[str], versions: dict[str, str]) -> str:
    """Return the contents of a lock file. versions: those that are pinned already; the others are added."""
    hashes: dict[str, set[str]] = defaultdict(set)
    needed: dict[str, list[str]] = defaultdict(list)
    for python in pythons:
        for name, (version, digest) in resolve(python, wanted, versions).items():
            versions[name] = version
            hashes[name].add(digest)
            needed[name].append(version_of(python))
    newest = version_of(pythons[-1])
    pins = [f"{name}=={versions[name]}" for name in needed if newest in needed[name]]
    for later in LATER:
        with tempfile.TemporaryDirectory() as unused:
            options = ["--no-deps", "--target", unused, "--python-version", later, *PLATFORMS]
            found = resolve(pythons[-1], pins, {}, *options)
        for name, (_, digest) in found.items():
            hashes[name].add(digest)
            needed[name].append(later)
    lines = ["# Written by .ci/lock.py: these versions, and only files with these hashes."]
    for name in sorted(needed):
        marker = ""
        if len(needed[name]) < len(pythons) + len(LATER):
            marker = "; " + " or ".join(f'python_version == "{v}"' for v in needed[name])
        digests = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[name]))
        lines.append(f"{name}=={versions[name]} {marker}".rstrip() + digests)
    return "\n".join(lines) + "\n"


def main(pythons: list[str]) -> int:
    """Write the lock files; return the exit code."""
    DIRECTORY.mkdir(exist_ok=True)
    versions: dict[str, str] = {}
    for level in ("test", "run", "docs"):  # the first has all packages: one version for all levels
        text = lock(pythons, requirements(level), versions)
        (DIRECTORY / f"{level}.txt").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PYTHONS)))
