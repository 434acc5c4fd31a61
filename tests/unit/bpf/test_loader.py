"""Output of the compiler of the BPF programs, also when it ends the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAY = """
import ctypes, os
from redirty.collector.bpf.loader import captured_stderr
with captured_stderr() as output:
    os.write(2, b"warning: of no interest\\nLLVM ERROR: no stack left\\n")
    {then}
os.write(2, b"after\\n" + output.text.encode()[:7])
{end}
"""


@pytest.mark.parametrize(
    ("then", "end", "code", "expected"),
    [
        ("pass", "", 0, "after\nwarning"),
        (
            "ctypes.CDLL(None).exit(1)",
            "",
            1,
            "redirty: the BPF compiler gave up: LLVM ERROR: no stack left\n",
        ),
        ("pass", "ctypes.CDLL(None).exit(1)", 1, "after\nwarning"),
    ],
    ids=["continues", "ends the process", "ended later by something else"],
)
def test_the_output_of_the_compiler_is_captured(
    then: str, end: str, code: int, expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAY.format(then=then, end=end)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, expected)
