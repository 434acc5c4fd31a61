"""No test has a limit that a slow machine meets, and what tests start runs until they end it."""

from __future__ import annotations

import ast

import pytest

from tests.support.paths import TESTS
from tests.support.waiting import PATIENCE_S

# Functions that wait -> the position of their limit, where it has one.
WAITS = {"wait_until": None, "finish": 1, "run_redirty": None, "wait_ready": 1, "communicate": None}
WAITS |= {"wait": None, "settimeout": 0, "receive": None, "join": None}
LIMITS = {"timeout_s", "timeout", "patience_s"}
# Emulated machines have limits of their own, of minutes; benchmarks are no tests.
FOLDERS = ("unit", "tui", "integration", "traps", "torture", "support", "workloads")
FILES = sorted(path for name in FOLDERS for path in (TESTS / name).rglob("*.py"))


def short_limits(tree: ast.AST) -> list[str]:
    """Return the calls that give up, or end by themselves, after a number of seconds written there."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        given = [k.value for k in node.keywords if k.arg in LIMITS] if name in WAITS else []
        position = WAITS.get(name)
        if position is not None:
            given += node.args[position : position + 1]
        if name == "timeout" and "mark" in ast.unparse(node.func):
            given += node.args
        if any(_number(value) < PATIENCE_S for value in given) or _sleeps_for_a_while(node):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def _number(node: ast.expr) -> float:
    """Return a number that is written out; anything else counts as enough."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value if node.value else PATIENCE_S  # 0: it does not wait at all
    return PATIENCE_S


def _sleeps_for_a_while(node: ast.Call) -> bool:
    """Return whether a process is started that is there for a number of seconds only."""
    words = node.args[0] if node.args else None
    if not isinstance(words, ast.List | ast.Tuple) or len(words.elts) != 2:
        return False
    first, second = (e.value if isinstance(e, ast.Constant) else None for e in words.elts)
    return first == "sleep" and second != "infinity"


def test_no_test_depends_on_the_speed_of_the_machine() -> None:
    found = {str(path): short_limits(ast.parse(path.read_text())) for path in FILES}
    assert not {path: calls for path, calls in found.items() if calls}, (
        "see tests/support/waiting.py"
    )


@pytest.mark.parametrize(
    "text",
    [
        "wait_until(f, 'x', timeout_s=5)",
        "finish(process, 20)",
        "process.communicate(timeout=30)",
        "server.wait_ready(f, 60)",
        "pytest.mark.timeout(180)",
        "sock.settimeout(5)",
        "Popen(['sleep', '60'])",
    ],
)
def test_limits_are_found(text: str) -> None:
    assert short_limits(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "wait_until(f, 'x')",
        "finish(p, PATIENCE_S)",
        "sock.settimeout(0)",
        "Popen(['sleep', 'infinity'])",
    ],
)
def test_patience_is_not_found(text: str) -> None:
    assert not short_limits(ast.parse(text))
