"""Refuse docstrings that begin with a fragment: a part of `make lint`.

    docstrings.py [FILE ...]        without FILE: every Python file that git tracks

A docstring begins with a verb (functions) or a noun (modules, classes); what a function raises is under
`Raises:`. A reader who meets "Of the link, by steps." has to read the code to know what it does.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# No docstring begins with a pronoun, or with a word that only a sentence before it would explain.
_FRAGMENTS = """
i me my we us our ours you your yours he him his she her hers it its they them their theirs
who whom whose which this that these those one ones some somebody something anybody anything
nobody nothing none everybody everything here there so such of how what as else
"""
# A function does something: its docstring begins with neither an article nor a preposition.
_NO_VERBS = """
a an the all both each every any no not also only with without by for from in on at until while when
where because if like after before and but or is are
"""
FRAGMENTS, NO_VERBS = frozenset(_FRAGMENTS.split()), frozenset(_NO_VERBS.split())
NONE = re.compile(r"Whether\b[^.]*\bnone\b", re.IGNORECASE)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of each docstring of a module's source that is refused."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)) is not None:
            for fault in _faults_of(node, text):
                yield node.body[0].lineno, fault


def _faults_of(node: Documented, text: str) -> Iterator[str]:
    word = re.match(r"\W*([\w'-]*)", text)
    first = word[1] if word else ""
    if not first:
        yield "is empty"
    elif first.lower().split("'")[0] in FRAGMENTS:
        yield f"begins with {first!r}"
    elif _needs_verb(node) and first.lower() in NO_VERBS:
        yield f"does not begin with a verb: {first!r}"
    elif NONE.match(text):
        yield "says whether it is none"
    if re.search(r"\bErrors:", text):
        yield "has 'Errors:' where 'Raises:' is the word"


def _needs_verb(node: Documented) -> bool:
    """Return True for a function that is neither a property nor a test."""
    if not isinstance(node, Function) or node.name.startswith("test_"):
        return False
    return not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def main(paths: list[str]) -> int:
    """Print every fault; return 1 if there is one."""
    if not paths:
        listed = subprocess.run(
            ["git", "ls-files", "*.py"], capture_output=True, text=True, check=True
        )
        paths = [path for path in listed.stdout.splitlines() if Path(path).is_file()]
    found = 0
    for path in paths:
        for line, fault in faults(Path(path).read_text(encoding="utf-8")):
            print(f"{path}:{line}: docstring {fault}")
            found += 1
    print(f"docstrings: {found} refused in {len(paths)} files")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
