"""record --stacks of targets whose files are traps: it ends, it names what it can, and it keeps what it recorded."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import ManagedProcess
from tests.support.redirty_cli import finish, run_redirty, start_redirty
from tests.support.waiting import PATIENCE_S, wait_until
from tests.tiers import require

pytestmark = pytest.mark.usefixtures("tracing")

NOBODY = 65534
# Stores a byte where its argument points, and returns: code that no file has, as a JIT compiler makes it.
STORE = {"x86_64": "c60701c3", "aarch64": "2100805201000039c0035fd6"}
PROGRAM = """
import ctypes, mmap, sys, time
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex(sys.argv[1]))
at = ctypes.addressof(ctypes.c_char.from_buffer(code))
store = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at)
memory = mmap.mmap(-1, 256 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(hex(at), flush=True)
while True:
    for page in range(256):
        store(first + page * 4096)
    time.sleep(0.005)
"""


class Jit(ManagedProcess):
    """A process with code of its own; at: where that is. It belongs to nobody."""

    def __init__(self) -> None:
        code = STORE.get(platform.machine())
        require(code, "knows no code for this processor")
        process = subprocess.Popen(
            [getattr(sys, "_base_executable", sys.executable), "-c", PROGRAM, str(code)],
            stdout=subprocess.PIPE,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
        )
        super().__init__(process, stop=signal.SIGKILL)
        assert process.stdout is not None
        self.at = process.stdout.readline().strip()
        self.map = Path(f"/tmp/perf-{self.pid}.map")

    def close(self) -> None:
        """See ManagedProcess."""
        super().close()
        self.map.unlink(missing_ok=True)


@pytest.fixture
def jit() -> Iterator[Jit]:
    with Jit() as target:
        yield target


def _regular(jit: Jit) -> None:
    jit.map.write_text(f"{jit.at[2:]} 1000 jitted_function\n")
    os.chown(jit.map, NOBODY, NOBODY)


def _foreign(jit: Jit) -> None:
    _regular(jit)
    os.chown(jit.map, NOBODY - 1, NOBODY - 1)


def _link_to_fifo(jit: Jit) -> None:
    fifo = jit.map.with_suffix(".fifo")
    os.mkfifo(fifo)
    try:
        jit.map.symlink_to(fifo)
        os.lchown(jit.map, NOBODY, NOBODY)
    except BaseException:
        fifo.unlink()
        raise


def _fifo(jit: Jit) -> None:
    os.mkfifo(jit.map)
    os.chown(jit.map, NOBODY, NOBODY)


def _endless(jit: Jit) -> None:
    _regular(jit)
    os.truncate(jit.map, 64 << 30)


def recorded(jit: Jit, directory: Path) -> set[str]:
    """Record the stacks of a few rounds; return the names in them."""
    done = run_redirty(
        "record", "-p", jit.pid, "100ms", "5", "--stacks", "-q", "-o", directory,
        timeout_s=PATIENCE_S,
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = (directory / "stacks.folded").read_text().splitlines()
    assert lines
    return {name for line in lines for name in line.rpartition(" ")[0].split(";")}


@pytest.mark.parametrize(
    ("leave", "named"),
    [(_regular, True), (_fifo, False), (_link_to_fifo, False), (_endless, True), (_foreign, False)],
)
def test_perf_maps(leave: Callable[[Jit], None], named: bool, jit: Jit, tmp_path: Path) -> None:
    leave(jit)
    try:
        names = recorded(jit, tmp_path / "rec")
    finally:
        jit.map.with_suffix(".fifo").unlink(missing_ok=True)
    assert ("jitted_function" in names) is named, names
    assert jit.alive


def test_a_reader_that_hangs_does_not_delay_the_end(jit: Jit, tmp_path: Path) -> None:
    """The reader of names stands still, as before a file server that is silent: SIGTERM ends the recording."""
    program = start_redirty("record", "-p", jit.pid, "100ms", "--stacks", "-o", tmp_path / "rec")

    def reader() -> int | None:
        assert program.poll() is None, program.communicate()[1]
        listed = subprocess.run(
            ["pgrep", "-P", str(program.pid), "-f", "symbol_reader"],
            capture_output=True,
            check=False,
        )
        return int(listed.stdout.split()[0]) if listed.stdout else None

    wait_until(reader, "the symbol reader")
    stopped = reader()
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    rounds = tmp_path / "rec" / "rounds.csv"
    before = rounds.read_text().count("\n")
    wait_until(lambda: rounds.read_text().count("\n") > before + 2, "two rounds")
    program.terminate()
    done = finish(program, PATIENCE_S)
    assert done.code == 130, done.err
    assert (tmp_path / "rec" / "stacks.folded").read_text()
    assert not Path(f"/proc/{stopped}").exists()
