"""The contents of an installed redirty: every package, the BPF sources, their headers."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import redirty.bpfprogs as programs
from redirty.collector import VERSION
from redirty.collector.ptrace.spawn import reap, start_helper

from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def tops() -> dict[str, Path]:
    """Return the top-level folder of each import package."""
    return {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}


def packages_on_disk() -> set[str]:
    found = set()
    for name, folder in tops().items():
        for init in folder.rglob("__init__.py"):
            below = init.parent.relative_to(folder).parts
            found.add(".".join((name, *below)))
    return found


def test_every_package_is_listed() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


def test_every_module_is_in_a_package() -> None:
    """A folder without __init__.py would be left out, which only an installed redirty would show."""
    for folder in tops().values():
        for module in folder.rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def test_the_bpf_sources_and_all_headers_are_package_data() -> None:
    assert SETUPTOOLS["include-package-data"] is False, "package-data alone lists the data"
    folder = tops()["redirty.bpfprogs"]
    matched = {
        path
        for pattern in SETUPTOOLS["package-data"]["redirty.bpfprogs"]
        for path in folder.glob(pattern)
    }
    wanted = {path for end in ("*.c", "*.h") for path in folder.rglob(end)}
    assert wanted == matched
    assert len([p for p in wanted if "kheaders" in p.parts]) >= 10


def test_other_data_is_listed_too() -> None:
    """Package data lists every file other than modules that an installed package would lack."""
    for name, folder in tops().items():
        listed = {
            path
            for pattern in SETUPTOOLS["package-data"].get(name, [])
            for path in folder.glob(pattern)
        }
        others = {
            path
            for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc", ".so")
        }
        assert others == listed, name


def test_the_sources_are_found_and_joined() -> None:
    text = programs.source()
    for part in ("dirty.bpf.c", "tlb.bpf.c"):
        assert f'#line 1 "{part}"' in text
        assert (programs.DIRECTORY / part).read_text(encoding="utf-8") in text
    for header in re.findall(r'#include "(.*)"', text):
        assert (programs.DIRECTORY / header).is_file()
    for header in re.findall(r"#include <(.*)>", text):
        assert (programs.KHEADERS / "include" / header).is_file()


def test_the_bpf_sources_are_under_the_kernels_licence_too() -> None:
    """Under another licence the kernel refuses the helper functions that they need."""
    for path in (*programs.DIRECTORY.glob("*.c"), *programs.DIRECTORY.glob("*.h")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == "/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */", path


def test_links_for_type_checkers_lead_to_the_folders() -> None:
    for name, folder in tops().items():
        link = ROOT / ".typing" / Path(*name.split("."))
        assert link.is_symlink()
        assert link.resolve() == folder
        assert not link.readlink().is_absolute(), "it must work in every checkout"
    there = {path.name for path in (ROOT / ".typing/redirty").iterdir()}
    assert there == {name.removeprefix("redirty.") for name in tops()}


def test_there_is_one_version() -> None:
    assert PROJECT["project"]["version"] == VERSION


def test_bcc_of_pypi_is_not_a_dependency() -> None:
    """The package called bcc on PyPI is another program."""
    named = [*PROJECT["project"]["dependencies"]]
    for more in PROJECT["project"]["optional-dependencies"].values():
        named += more
    assert not any(re.match(r"(python3?-)?(bcc|bpfcc)\b", name) for name in named)


def test_the_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


HELPERS = ROOT / "collector/ptrace/helpers"
BARE = sorted(path.stem for path in HELPERS.glob("*.py"))


@pytest.mark.parametrize("module", BARE)
def test_ptrace_helpers_need_the_standard_library_only(module: str) -> None:
    """The helpers are started with -I -S, so that they start at once, and import the standard library only."""
    tree = ast.parse((HELPERS / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or str(node.module).split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize(
    ("helper", "kind"),
    [("injector", socket.SOCK_SEQPACKET), ("freezer", socket.SOCK_STREAM)],
)
def test_a_helper_starts_and_ends_with_its_peer(helper: str, kind: socket.SocketKind) -> None:
    local, peer = socket.socketpair(socket.AF_UNIX, kind)
    process = start_helper(helper, peer)
    local.close()
    assert process.wait(timeout=PATIENCE_S) == 0
    reap(process)
