"""The lint of output: each way around the functions that clean text is found, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / ".ci/texts.py"


@pytest.fixture(scope="module")
def lint() -> ModuleType:
    spec = importlib.util.spec_from_file_location("texts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFUSED = [
    "os.write(1, answer)",
    "os.write(2, f'{name}'.encode())",
    "os.write(stderr, line.encode())",
    "os.write(self._out, data)",
    "sys.stdout.buffer.write(data)",
    "sys.__stderr__.write(name)",
    "print(name, file=open('/dev/tty', 'w'))",
    "csv.writer(file).writerow(row)",
    "Static(str(error))",
    "Static(f'no such {name}')",
    "Label(path)",
    "self.query_one('#wrong', Static).update(str(e))",
    "box.border_title = self._title",
    "box.border_subtitle = f'{name}'",
    "Segment(part, style)",
    "Content.from_markup(text)",
    "self.notify(text, markup=True)",
]
ACCEPTED = [
    "os.write(2, b'interrupted')",
    "os.write(2, _RESET)",
    "os.write(fd, content)",
    "os.write(stderr, one_line(line).encode() + b'\\n')",
    "print(name)",
    "print(name, file=sys.stderr)",
    "Static('')",
    "Static(plain(str(error)))",
    "Static(Text(self._text))",
    "Static(f'no such {plain(name)}')",
    "self.query_one('#wrong', Static).update(plain(str(e)))",
    "known.update(more)",
    "box.border_title = 'help'",
    "self.border_title = plain(title).markup",
    "Segment(one_line(part), style)",
    "self.notify(text)",
    "os.write(1, answer)  # text: JSON, in ASCII",
]


@pytest.mark.parametrize("line", REFUSED)
def test_refused(lint: ModuleType, line: str) -> None:
    found = list(lint.faults(f"import os\n{line}\n", "tui/screens/x.py"))
    assert [number for number, _ in found] == [2]


@pytest.mark.parametrize("line", ACCEPTED)
def test_accepted(lint: ModuleType, line: str) -> None:
    assert not list(lint.faults(line, "tui/screens/x.py"))


def test_widgets_are_checked_on_screens_only(lint: ModuleType) -> None:
    assert not list(lint.faults("Label(path)", "collector/model/x.py"))


def test_the_program(lint: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "x.py"
    bad.write_text("os.write(1, x)\n")
    assert lint.main([str(bad)]) == 1
    assert capsys.readouterr().out == (
        f"{bad}:1: writes to a terminal's descriptor what is not cleaned\ntexts: 1 refused in 1 files\n"
    )
    bad.write_text("print(1)\n")
    assert lint.main([str(bad)]) == 0
