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

# Words that no docstring begins with: it has a noun or a verb to begin with instead.
FRAGMENTS = frozenset(
    (
        *("i", "me", "my", "we", "us", "our", "ours", "you", "your", "yours", "he", "him", "his"),
        *("she", "her", "hers", "it", "its", "they", "them", "their", "theirs", "who", "whom"),
        *("whose", "which", "this", "that", "these", "those", "one", "ones", "some", "somebody"),
        *("something", "anybody", "anything", "nobody", "nothing", "none", "everybody"),
        *("everything", "here", "there", "so", "such", "of", "how", "what", "as", "else"),
    )
)
# A function does something: it begins with neither an article nor a preposition.
NO_VERBS = frozenset(
    (
        *("a", "an", "the", "all", "both", "each", "every", "any", "no", "not", "also", "only"),
        *("with", "without", "by", "for", "from", "in", "on", "at", "until", "while", "when"),
        *("where", "because", "if", "like", "after", "before", "and", "but", "or", "is", "are"),
    )
)
NONE = re.compile(r"Whether\b[^.]*\bnone\b", re.IGNORECASE)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the fault of each docstring of a module's source that is refused."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, Documented):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        line = node.body[0].lineno
        word = re.match(r"\W*([\w'-]*)", text)
        first = word[1].lower() if word else ""
        called = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        value = called and any("property" in ast.unparse(d) for d in node.decorator_list)
        if first in FRAGMENTS or first.split("'")[0] in FRAGMENTS:
            yield line, f"begins with {word[1]!r}" if word else "is empty"
        elif called and not value and not node.name.startswith("test_") and first in NO_VERBS:
            yield line, f"does not begin with a verb: {first!r}"
        elif NONE.match(text):
            yield line, "says whether it is none"
        if re.search(r"\bErrors:", text):
            yield line, "has 'Errors:' where 'Raises:' is the word"


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
