"""Refuse output that goes around the functions which clean text: a part of `make lint`.

    texts.py [FILE ...]        without FILE: every Python file of collector/ and tui/ that git tracks

Names, paths and answers of other programs may hold commands to the terminal, markup of Textual, or formulas.
So the program prints through its streams (cli/streams.py), widgets show what plain() returns, and tables for
spreadsheets come from cells(). A line that has to do otherwise says why in a comment `# text: …`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLEANERS = frozenset({"plain", "lines", "one_line", "Text", "Content"})
"""Functions whose result is shown as it is."""
_RAW_STREAMS = frozenset({"__stdout__", "__stderr__"})
_TITLES = frozenset({"border_title", "border_subtitle"})
_WIDGETS = frozenset({"Static", "Label", "Button", "Checkbox"})
_MARKUP = frozenset({"from_markup", "render_str", "render_markup"})
MARK = "# text: "


def faults(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of each way around the functions that clean text."""
    lines = source.splitlines()
    screen = path.startswith(("tui/screens/", "tui/widgets/", "tui/app.py"))
    for node in ast.walk(ast.parse(source)):
        fault = _fault_of(node, screen=screen)
        if fault:
            line = node.lineno  # type: ignore[attr-defined]
            if MARK not in lines[line - 1]:
                yield line, fault


def _fault_of(node: ast.AST, *, screen: bool) -> str:
    if isinstance(node, ast.Call):
        return _of_call(node, screen=screen)
    if isinstance(node, ast.Attribute):
        if node.attr in _RAW_STREAMS and _name(node.value) == "sys":
            return f"uses sys.{node.attr}, which is not cleaned"
        if node.attr == "buffer" and _name(node.value) in ("stdout", "stderr"):
            return "writes bytes to a stream, which are not cleaned"
    if screen and isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr in _TITLES:
                return "" if _clean(node.value) else f"sets {target.attr} to what may be markup"
    return ""


def _of_call(node: ast.Call, *, screen: bool) -> str:
    name, first = _name(node.func), node.args[0] if node.args else None
    if name == "print":
        for keyword in node.keywords:
            if keyword.arg == "file" and ast.unparse(keyword.value) not in (
                "sys.stderr",
                "sys.stdout",
            ):
                return "prints to another stream than those that are cleaned"
    if name == "write" and _owner(node.func) == "os" and len(node.args) > 1 and _terminal(first):
        return (
            "" if _clean(node.args[1]) else "writes to a terminal's descriptor what is not cleaned"
        )
    if name == "writer" and _owner(node.func) == "csv":
        return "writes CSV: files.csv_bytes() does, of cells() if people open it in a spreadsheet"
    if name in _MARKUP:
        return f"{name}() takes markup"
    if any(k.arg == "markup" and ast.unparse(k.value) == "True" for k in node.keywords):
        return "asks for markup"
    if screen and name in _WIDGETS and first is not None and not _clean(first):
        return f"{name}() takes what may be markup: plain() returns what is none"
    if screen and name == "update" and _widget(node.func) and first and not _clean(first):
        return "update() takes what may be markup: plain() returns what is none"
    if screen and name == "Segment" and first is not None and not _clean(first):
        return "a segment reaches the terminal as it is: one_line() cleans it"
    return ""


def _name(node: ast.AST) -> str:
    """Return the last part of a dotted name."""
    return (
        node.attr
        if isinstance(node, ast.Attribute)
        else node.id
        if isinstance(node, ast.Name)
        else ""
    )


def _owner(node: ast.AST) -> str:
    return _name(node.value) if isinstance(node, ast.Attribute) else ""


def _terminal(node: ast.AST | None) -> bool:
    """Return whether a descriptor is one of the standard ones, by its number or its name."""
    if isinstance(node, ast.Constant):
        return node.value in (1, 2)
    return node is not None and any(
        word in ast.unparse(node) for word in ("stderr", "stdout", "_out")
    )


def _widget(node: ast.AST) -> bool:
    """Return whether a method's object looks like a widget: query_one(…), or an attribute that is no set or dict."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and _name(node.value.func) in ("query_one", "get_child_by_id", "get_widget_by_id")
    )


def _clean(node: ast.AST) -> bool:
    """Return whether a text is a constant, or comes from one of CLEANERS."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id.isupper() or node.id.lstrip("_").isupper()  # a constant of the module
    if isinstance(node, ast.BinOp):
        return _clean(node.left) and _clean(node.right)
    if isinstance(node, ast.JoinedStr):
        return all(_clean(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _clean(node.value)
    if isinstance(node, ast.Attribute) and node.attr == "markup":
        return _clean(node.value)
    if isinstance(node, ast.Call):
        if _name(node.func) == "encode" and isinstance(node.func, ast.Attribute):
            return _clean(node.func.value)
        return _name(node.func) in CLEANERS
    return False


def main(paths: list[str]) -> int:
    """Print every fault; return 1 if there is one."""
    if not paths:
        listed = subprocess.run(
            ["git", "ls-files", "collector/*.py", "tui/*.py"],
            capture_output=True,
            text=True,
            check=True,
        )
        paths = [path for path in listed.stdout.splitlines() if Path(path).is_file()]
    found = 0
    for path in paths:
        for line, fault in faults(Path(path).read_text(encoding="utf-8"), path):
            print(f"{path}:{line}: {fault}")
            found += 1
    print(f"texts: {found} refused in {len(paths)} files")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
