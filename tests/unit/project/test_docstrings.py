"""The lint of docstrings: each rule refuses the bad example and accepts the good one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / ".ci/docstrings.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docstrings", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lint = _load()


def function(docstring: str, name: str = "f", decorator: str = "") -> str:
    """Return the source of a function with a docstring."""
    return f'{decorator}\ndef {name}():\n    """{docstring}"""\n'


def refusals(source: str) -> list[str]:
    """Return the faults that the lint finds in a module's source."""
    return [fault for _, fault in lint.faults(source)]


@pytest.mark.parametrize(
    ("bad", "good", "fault"),
    [
        ("Those.", "Return the thread states.", "begins with 'Those'"),
        ("It's closed.", "Close the file.", 'begins with "It\'s"'),
        ("Of the link, by steps.", "Step the bandwidth of the link.", "begins with 'Of'"),
        ("How it ended.", "Return how it ended.", "begins with 'How'"),
        ("What it said.", "Return what it said.", "begins with 'What'"),
        ("As it is now.", "Sample the counts now.", "begins with 'As'"),
        ("The program's path.", "Return the path.", "does not begin with a verb: 'The'"),
        ("With another downtime.", "Copy it.", "does not begin with a verb: 'With'"),
        ("Whether it is none.", "Whether there is no page.", "says whether it is none"),
        ("...", "Do nothing.", "is empty"),
        (
            "Close it. Errors: OSError.",
            "Close it. Raises: OSError.",
            "has 'Errors:' where 'Raises:' is the word",
        ),
    ],
)
def test_functions(bad: str, good: str, fault: str) -> None:
    """A function's docstring begins with a verb, and says what it raises under Raises:."""
    assert refusals(function(bad)) == [fault]
    assert refusals(function(good)) == []


@pytest.mark.parametrize("source", ['"""{}"""\n', 'class A:\n    """{}"""\n'])
def test_modules_and_classes(source: str) -> None:
    """A module or class may begin with an article, but not with a pronoun."""
    assert refusals(source.format("The layout of the packages.")) == []
    assert refusals(source.format("They lie at the root.")) == ["begins with 'They'"]


@pytest.mark.parametrize("decorator", ["@property", "@functools.cached_property"])
def test_properties(decorator: str) -> None:
    """A property has a noun phrase, article included, but no pronoun."""
    assert refusals(function("The page number.", decorator=decorator)) == []
    assert refusals(function("Its page.", decorator=decorator)) == ["begins with 'Its'"]


def test_tests() -> None:
    """A test states the behaviour in a sentence, which may begin with an article."""
    assert refusals(function("A second call does nothing.", name="test_close")) == []
    assert refusals(function("They do nothing.", name="test_close")) == ["begins with 'They'"]


def test_methods_and_coroutines() -> None:
    """Methods, nested functions and coroutines are checked as functions are."""
    source = 'class A:\n    async def f(self):\n        """{}"""\n'
    assert refusals(source.format("Wait for the end.")) == []
    assert refusals(source.format("Until the end.")) == ["does not begin with a verb: 'Until'"]


def test_a_function_without_a_docstring_is_accepted() -> None:
    """Whether a function needs a docstring is left to its author."""
    assert refusals("def f():\n    pass\n") == []


def test_exit_code_and_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault is printed with its file and line, and makes the lint fail."""
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text('"""Waiting for processes."""\n')
    bad.write_text('"""Waiting."""\n\n\ndef f():\n    """Nothing by itself."""\n')
    assert lint.main([str(good)]) == 0
    assert capsys.readouterr().out == "docstrings: 0 refused in 1 files\n"
    assert lint.main([str(good), str(bad)]) == 1
    assert capsys.readouterr().out == (
        f"{bad}:5: docstring begins with 'Nothing'\ndocstrings: 1 refused in 2 files\n"
    )
