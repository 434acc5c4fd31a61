"""The layout of the packages: names by the field's terms, and folders that can be taken in at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAX_MODULES = 20
MAX_ROOT_MODULES = 8
# House words that modules once had for names -> the field's term, which such a module is to have instead.
HOUSE_WORDS = {
    "again": "redirtying, streaks",
    "beside": "spawn",
    "census": "process_table",
    "choices": "options",
    "choose": "methods",
    "door": "listener",
    "ending": "switchover",
    "facts": "round_summary",
    "family": "process_names",
    "features": "host_check, probe_support",
    "held": "thread_group",
    "held_back": "deferral",
    "holder": "freezer",
    "holding": "freezer_client",
    "made_up": "factories",
    "mirroring": "session",
    "movable": "planner",
    "moving": "move",
    "outlook": "estimator",
    "outside": "external_writers",
    "own": "anon_pages",
    "owner": "peer",
    "pace": "rate_limiter",
    "parts": "rows, parquet_parts",
    "passes": "precopy",
    "places": "relocation_layout",
    "price": "fault_cost",
    "quiesce": "stop_and_copy",
    "refusals": "preconditions",
    "routine": "relocation_stub",
    "trial": "probe_support",
    "typed": "prompt",
    "wish": "request",
    "words": "reasons",
}
PACKAGES = [ROOT / name for name in ("bpfprogs", "collector", "tui", "tests")]
FOLDERS = sorted(
    {path.parent for name in ("collector", "tui") for path in (ROOT / name).rglob("__init__.py")}
)


def modules(folder: Path) -> list[str]:
    """Return the names of the modules of a folder, without its __init__."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_module_is_named_by_a_house_word(package: Path) -> None:
    """No module or folder has a name that the field does not use for what is in it."""
    named = [path for path in package.rglob("*.py") if "__pycache__" not in path.parts]
    words = {path: {path.stem, path.parent.name} & HOUSE_WORDS.keys() for path in named}
    found = {
        str(path.relative_to(ROOT)): [HOUSE_WORDS[word] for word in sorted(used)]
        for path, used in words.items()
        if used
    }
    assert not found, f"module -> terms to name it by: {found}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_has_few_modules(folder: Path) -> None:
    """A folder with more modules than a reader takes in at a glance is split."""
    assert len(modules(folder)) <= MAX_MODULES, modules(folder)


def test_the_root_of_the_collector_has_few_modules() -> None:
    """Only what every package needs lies at the root; everything else has a folder of its subject."""
    root = modules(ROOT / "collector")
    assert len(root) <= MAX_ROOT_MODULES, root
