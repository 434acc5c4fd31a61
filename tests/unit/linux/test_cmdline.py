"""Arguments of a process are not read where it has mapped a file, which may be one of a silent FUSE server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from redirty.collector.linux import procfs

from tests.support.processes import ManagedProcess

LONG = "x" * 65536  # whole pages of arguments, one of which another mapping can take the place of
PROGRAM = """
import ctypes, mmap, sys
kind, path, _ = sys.argv[1:]
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
page = (int(fields[45]) + 32768) & -4096
mmap_ = ctypes.CDLL(None).mmap
mmap_.restype = ctypes.c_void_p
mmap_.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
file = open(path, "rb")
fixed, anonymous = 0x10, mmap.MAP_ANONYMOUS
flags = {"file": mmap.MAP_PRIVATE | fixed, "anonymous": mmap.MAP_PRIVATE | fixed | anonymous}
done = page
if kind in flags:
    done = mmap_(page, 4096, 1, flags[kind], file.fileno() if kind == "file" else -1, 0)
print(done == page, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["own", "anonymous", "file"])
def test_arguments(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 4096)
    words = [sys.executable, "-c", PROGRAM, kind, str(path), LONG]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with ManagedProcess(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        found = procfs.read_cmdline(process.pid)
    assert found is not None
    if kind == "file":
        assert found == []
    else:
        assert found[1:5] == words[1:5]
        assert (found[5] == LONG) is (kind == "own")
