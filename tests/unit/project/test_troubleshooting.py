"""The page on troubleshooting has a row for every message that the program can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = sorted(path for folder in ("collector", "tui") for path in (ROOT / folder).rglob("*.py"))

# Exceptions whose text never reaches a user as a line of its own.
INTERNAL = {
    "GoneError": "has no text: memory disappeared, and the caller decides what that means",
    "_DeadlineError": "has no text: ends a pass, and the caller explains the deadline",
    "DamageError": "part of '… is damaged:', which has a row",
    "FrameError": "the receiver prints it after 'connection lost:', which has a row",
    "ConnectionLostError": "part of 'connection lost:' and 'refused the mirror:', which have rows",
    "StoreError": "part of 'cannot store the mirror:' and 'cannot mirror this target:'",
    "NoWayHomeError": "has no text: another thread is taken then, or this one all the same",
}
# Exceptions whose text is the reason at the end of another message. Its place among the arguments.
REASONS = {"TraceeError": 1, "InUseError": 1, "QmpError": 0}
HOLE = None
PLACEHOLDER = r"(?:…|[A-Z][A-Z0-9_]*)"
PREFIX = "redirty: "  # of lines that are printed directly
Template = tuple[str | None, ...]


@dataclass(frozen=True)
class Message:
    """A message: where it is made, and its literal parts with a None for each inserted value."""

    where: str
    parts: Template

    @property
    def text(self) -> str:
        """The message as it could be in the page."""
        return "".join("…" if part is HOLE else part for part in self.parts)

    @property
    def pattern(self) -> str:
        """A regular expression for the message as it is in the page."""
        return "".join(PLACEHOLDER if part is HOLE else re.escape(part) for part in self.parts)


def joined(parts: Iterator[str | None]) -> Template:
    """Join adjacent literal parts, and adjacent inserted values."""
    found: list[str | None] = []
    for part in parts:
        if part is HOLE and found and found[-1] is HOLE:
            continue
        if part is not HOLE and found and found[-1] is not HOLE:
            found[-1] += part
        else:
            found.append(part)
    if found and found[-1] is not HOLE:
        found[-1] = found[-1].rstrip("\n")
    return tuple(found)


def has_words(parts: Template) -> bool:
    """Return whether a template says anything by itself."""
    return any(part is not HOLE and re.search(r"[a-zA-Z]{2}", part) for part in parts)


class Module:
    """A parsed source file, in which the texts of messages are looked up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = dict(self._constants())
        self._visible = dict(self.constants)  # with imported ones, see link()
        self.functions = {
            node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)
        }
        self._parents = {
            child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)
        }

    def _constants(self) -> Iterator[tuple[str, str]]:
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                value = node.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield node.targets[0].id, value.value

    def link(self, modules: Mapping[str, Module]) -> None:
        """Make the constants visible that this module imports. modules: by their dotted names."""
        for node in ast.walk(self.tree):
            source = modules.get(node.module or "") if isinstance(node, ast.ImportFrom) else None
            for alias in node.names if isinstance(node, ast.ImportFrom) and source else ():
                if source and alias.name in source.constants:
                    self._visible[alias.asname or alias.name] = source.constants[alias.name]

    def where(self, node: ast.expr) -> str:
        """Return the file and the line of a node."""
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"

    def templates(self, node: ast.expr | None) -> list[Template]:
        """Return all texts that an expression can have; conditional ones are several."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [(node.value,)]
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            return [(node.value.decode(errors="replace"),)]
        if isinstance(node, ast.IfExp):
            return [*self.templates(node.body), *self.templates(node.orelse)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._product([node.left, node.right])
        if isinstance(node, ast.JoinedStr):
            return self._product(node.values)
        if isinstance(node, ast.FormattedValue):
            return self.templates(node.value) if isinstance(node.value, ast.Name) else [(HOLE,)]
        if isinstance(node, ast.Name) and node.id in self._visible:
            return [(self._visible[node.id],)]
        return [(HOLE,)]

    def _product(self, nodes: list[ast.expr]) -> list[Template]:
        choices = product(*map(self.templates, nodes))
        return [joined(part for parts in chosen for part in parts) for chosen in choices]

    def resolved(self, node: ast.expr) -> list[Template]:
        """Return the texts of an argument; one without words is looked up where it comes from."""
        found: list[Template] = []
        for template in self.templates(node):
            origins = [] if has_words(template) else self._origins(node)
            found += origins or [template]
        return found

    def _origins(self, node: ast.expr) -> list[Template]:
        """Look up a variable, a parameter, or the result of a function of this module."""
        if isinstance(node, ast.JoinedStr):
            texts = [
                self._origins(v.value) or self.templates(v)
                if isinstance(v, ast.FormattedValue)
                else self.templates(v)
                for v in node.values
            ]
            return [
                joined(part for parts in chosen for part in parts) for chosen in product(*texts)
            ]
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            if name not in self.functions:
                return []
            returns = [n for n in ast.walk(self.functions[name]) if isinstance(n, ast.Return)]
            return [t for r in returns for t in self.templates(r.value) if has_words(t)]
        if not isinstance(node, ast.Name):
            return []
        inside = self._function_around(node)
        values = [
            n.value
            for n in ast.walk(inside)
            if isinstance(n, ast.Assign)
            and isinstance(n.targets[0], ast.Name)
            and n.targets[0].id == node.id
        ]
        values += self._arguments(inside, node.id)
        found = [t for value in values for t in self.templates(value) if has_words(t)]
        return found or [t for v in values if isinstance(v, ast.Call) for t in self._origins(v)]

    def _function_around(self, node: ast.AST) -> ast.AST:
        while not isinstance(node, ast.FunctionDef | ast.Module):
            node = self._parents[node]
        return node

    def _arguments(self, function: ast.AST, name: str) -> list[ast.expr]:
        """Return what calls in this module pass as a parameter."""
        if not isinstance(function, ast.FunctionDef):
            return []
        names = [a.arg for a in function.args.args if a.arg != "self"]
        if name not in names:
            return []
        at = names.index(name)
        return [
            n.args[at] for n in self._calls() if called(n) == function.name and len(n.args) > at
        ]

    def _calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    def raised(self, classes: Mapping[str, int]) -> Iterator[Message]:
        """Yield the messages of exceptions. classes: name -> place of the text in the arguments."""
        for call in self._calls():
            at = classes.get(called(call), classes.get(self._base_initialized(call)))
            if at is not None and len(call.args) > at:
                for template in self.resolved(call.args[at]):
                    if has_words(template):
                        yield Message(self.where(call), template)

    def _base_initialized(self, call: ast.Call) -> str:
        """Return the base class whose constructor a super().__init__() calls; empty if it is none."""
        node: ast.AST = call
        while called(call) == "__init__" and node in self._parents:
            node = self._parents[node]
            if isinstance(node, ast.ClassDef) and node.bases:
                return ast.unparse(node.bases[0])
        return ""

    def printed(self) -> Iterator[Message]:
        """Yield the lines that are printed with the program's name: warnings, notes."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            parent = self._parents[node]
            if isinstance(parent, ast.JoinedStr | ast.Expr):
                continue  # a part of another text; a docstring
            if isinstance(parent, ast.keyword) and parent.arg == "format":
                continue  # of the log that -v and REDIRTY_DEBUG=1 show
            for first, *rest in self.templates(node):
                if first is not HOLE and first.startswith(PREFIX):
                    template = joined(iter((first.removeprefix(PREFIX), *rest)))
                    if has_words(template):
                        yield Message(self.where(node), template)


def called(call: ast.Call) -> str:
    """Return the name of the function or class that is called; empty if it has none."""
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


@cache
def modules() -> list[Module]:
    """Parse the sources."""
    parsed = [Module(path) for path in SOURCES]
    by_name = {
        f"redirty.{'.'.join(m.path.relative_to(ROOT).with_suffix('').parts)}": m for m in parsed
    }
    for module in parsed:
        module.link(by_name)
    return parsed


@cache
def exceptions() -> dict[str, str]:
    """Return every exception class of the sources, and its base class."""
    bases = {
        node.name: base.id
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    return {name: base for name, base in bases.items() if is_a(name, bases, "Exception", "OSError")}


def is_a(name: str, bases: Mapping[str, str], *ancestors: str) -> bool:
    """Return whether a class is, or descends from, one of some others."""
    while name not in ancestors and name in bases:
        name = bases[name]
    return name in ancestors


def shown() -> dict[str, int]:
    """Return the classes whose text is printed as a line, with its place among the arguments."""
    return {name: 0 for name in exceptions() if is_a(name, exceptions(), "RedirtyError")}


def messages(classes: Mapping[str, int], *, printed: bool) -> list[Message]:
    """Return all messages, each text once."""
    found: dict[str, Message] = {}
    for module in modules():
        for message in module.raised(classes):
            found.setdefault(message.text, message)
        for message in module.printed() if printed else ():
            found.setdefault(message.text, message)
    return list(found.values())


def cells(heading: str) -> list[str]:
    """Return the code in the first column of all tables of the page with such a heading."""
    found: list[str] = []
    inside = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        columns = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)]
        if not line.startswith("|"):
            inside = False
        elif columns[1] in ("Message", "Reason"):
            inside = columns[1] == heading
        elif inside:
            found += re.findall(r"`([^`]+)`", columns[1])
    return found


TABLES = [
    pytest.param("Message", shown, True, id="messages"),
    pytest.param("Reason", lambda: REASONS, False, id="reasons"),
]
Classes = Callable[[], Mapping[str, int]]


@pytest.mark.parametrize(("heading", "classes", "printed"), TABLES)
def test_every_message_has_a_row(heading: str, classes: Classes, printed: bool) -> None:
    """Each text of an error, a warning or a note is in the first column of a table of the page."""
    found = messages(classes(), printed=printed)
    assert len(found) > 20  # else they are made in another way, which this test does not know
    rows = cells(heading)
    missing = [m for m in found if not any(re.fullmatch(m.pattern, row) for row in rows)]
    assert not missing, (
        f"add rows to a table with the heading {heading!r} in {PAGE.relative_to(ROOT)}, with the "
        "inserted values (…) as words in capitals:\n"
        + "\n".join(f"| `{m.text}` | its meaning | what to do |   ({m.where})" for m in missing)
    )


@pytest.mark.parametrize(("heading", "classes", "printed"), TABLES)
def test_every_row_is_of_a_message(heading: str, classes: Classes, printed: bool) -> None:
    """No row is of a message that the program no longer has, and no message has two."""
    patterns = [m.pattern for m in messages(classes(), printed=printed)]
    rows = cells(heading)
    stale = [row for row in rows if not any(re.fullmatch(p, row) for p in patterns)]
    assert not stale, f"remove or correct in {PAGE.relative_to(ROOT)}: {stale}"
    assert len(set(rows)) == len(rows), [row for row in rows if rows.count(row) > 1]


def test_every_row_has_a_meaning_and_something_to_do() -> None:
    """Each row of a message has three columns, none of them empty."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `")]
    assert all(len(row) in (2, 3) and all(c.strip() for c in row) for row in rows), rows


def test_every_exception_is_shown_or_internal() -> None:
    """A new class of exceptions is either one that users see, or is listed here with a reason."""
    assert set(exceptions()) == set(shown()) | set(INTERNAL) | set(REASONS)
    assert not set(shown()) & (set(INTERNAL) | set(REASONS))
