"""Files are created and removed through folders.py only, and no Python imports from the working directory."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.paths import ROOT

SOURCES = sorted(
    path for part in ("collector", "tui", "bpfprogs") for path in (ROOT / part).rglob("*.py")
)
WRITERS = frozenset(
    (
        "write_text", "write_bytes", "mkdir", "makedirs", "mkfifo", "unlink", "rmdir", "removedirs", "renames",
        "rmtree", "symlink", "symlink_to", "hardlink_to", "touch", "mkstemp", "mktemp", "mkdtemp",
        "NamedTemporaryFile",
        "truncate", "chmod", "chown",
    )
)  # fmt: skip
# what these do with files that are not anybody's to put in the way
ALLOWED = {
    "collector/folders.py": WRITERS | {"O_CREAT", "rename"},
    "collector/mirror/transport/code_file.py": {"unlink"},  # by the held directory
    "collector/arming/fault_cost.py": {"write_text"},  # /proc/self/clear_refs
    "collector/ptrace/helpers/tracee.py": {"open"},  # /proc/self/oom_score_adj
    "collector/ptrace/helpers/relocation.py": {"open"},  # /proc/PID/mem
    "collector/ptrace/helpers/injection.py": {"open"},  # /proc/PID/mem
}


def writers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each call that creates, changes or removes a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("O_CREAT", "O_TRUNC"):
            yield node.lineno, node.attr
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        # Path.rename() and os.rename(); that of a held directory takes a name and is called on a folder
        if name in WRITERS or (name == "rename" and "folder" not in ast.unparse(node.func)):
            yield node.lineno, name
        modes = [
            a.value
            for a in (*node.args, *(k.value for k in node.keywords))
            if isinstance(a, ast.Constant)
        ]
        wanted = [m for m in modes if isinstance(m, str) and len(m) <= 3 and set(m) & set("wax+")]
        if name == "open" and any(set(m) <= set("rwaxbt+") for m in wanted):
            yield node.lineno, name


def test_the_search_finds_what_it_is_for() -> None:
    found = writers(
        ast.parse(
            "open('x', 'w')\nPath(x).open('ab')\nos.mkdir(x)\nos.open(x, os.O_CREAT)\nopen(x)\nf.open('rb')\n"
        )
    )
    assert list(found) == [(1, "open"), (2, "open"), (3, "mkdir"), (4, "O_CREAT")]


def test_files_are_created_in_held_directories_only() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in writers(ast.parse(path.read_text(encoding="utf-8")))
        if name not in ALLOWED.get(str(path.relative_to(ROOT)), ())
    }
    assert not found, "use collector/folders.py (docs/threat-model.md)"


def test_no_python_imports_from_the_working_directory() -> None:
    """Each list of words that begins with an interpreter goes on with -I or -P."""
    started = 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.List | ast.Tuple) or len(node.elts) < 2:
                continue
            first, second = node.elts[:2]
            if ast.unparse(first) in ("sys.executable", "_PYTHON"):
                started += 1
                assert isinstance(second, ast.Constant) and second.value in ("-I", "-P"), (
                    f"{path.relative_to(ROOT)}:{node.lineno}: python imports from the working directory"
                )
    assert started >= 4, "where redirty starts Python"
