"""Names of functions in living processes; a reader that crashes or hangs costs names, and nothing else."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import pytest
from redirty.collector.foreign.symbols import Symbols

from tests.support.closing import Closing
from tests.support.processes import has_ended
from tests.support.waiting import wait_until


def address_of(library: str | None, name: str) -> int:
    value = ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value
    assert value
    return value


def code_of(path: str) -> int:
    """Return the start of the code of a file in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if " r-xp " in line and line.endswith(path):
            return int(line.partition("-")[0], 16)
    raise AssertionError(path)


class Named(Closing):
    """Symbols of this process."""

    def __init__(self) -> None:
        self.symbols = Symbols()

    def names(self, *addresses: int) -> list[str]:
        self.symbols.request(os.getpid(), addresses)
        self.symbols.finish()
        return [self.symbols.name(os.getpid(), a) for a in addresses]

    def reader(self) -> int:
        assert self.symbols._reader is not None
        return self.symbols._reader.pid

    def close(self) -> None:
        self.symbols.close()


def test_names() -> None:
    libc = address_of("libc.so.6", "qsort")
    cxx = address_of("libstdc++.so.6", "_ZSt9terminatev")
    vdso = code_of("[vdso]")
    with Named() as named:
        first, demangled, none, nowhere = named.names(libc + 4, cxx, 0x10, 0x7FFF_FFFF_0000)
        assert "qsort" in first
        assert demangled == "std::terminate()"
        assert (none, nowhere) == ("[unknown]", "[unknown]")
        inside = named.names(*range(vdso, vdso + 0x2000, 64))
        assert any("gettime" in name for name in inside), set(inside)
        assert not any(";" in name for name in inside)


def test_a_process_that_ended_has_no_names_and_no_error() -> None:
    child = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitpid(child, 0)
    symbols = Symbols()
    symbols.request(child, [0x1000])
    symbols.finish()
    assert symbols.name(child, 0x1000) == "[unknown]"
    symbols.close()


def test_a_name_is_the_address_until_it_is_known() -> None:
    with Named() as named:
        assert named.symbols.name(os.getpid(), 0xABC) == "0xabc"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_fails_is_replaced_and_reads_no_more_files(number: signal.Signals) -> None:
    """Killed: as by a crash or the limit of its time. Stopped: as one that waits for a file server."""
    at = address_of("libc.so.6", "qsort")
    with Named() as named:
        named.names(0x10)
        reader = named.reader()
        os.kill(reader, number)
        name = named.names(at)[0]
        # One that has died before the question came has no file to blame: the new one reads it.
        assert name.startswith("libc.so.6+0x") or (name == "qsort" and number == signal.SIGKILL)
        assert named.reader() != reader
        wait_until(lambda: has_ended(reader), "the end of the old reader")
        # others keep their names
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", "input()"], os.environ)
        named.symbols.request(child, [0x10])
        named.symbols.finish()
        assert named.symbols.name(child, 0x10) == "[unknown]"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_readers_are_not_replaced_for_ever() -> None:
    with Named() as named:
        for pid in range(1 << 22, (1 << 22) + 10):
            named.symbols.request(pid, [0x10])
            named.symbols.finish()
            if named.symbols._reader is None:
                break
            os.kill(named.reader(), signal.SIGKILL)
        assert named.symbols.name(pid, 0x10) == "0x10"


def test_a_hurried_end_does_not_wait_for_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redirty.collector.foreign.symbols._STUCK_S", 1e9)
    with Named() as named:
        named.names(0x10)
        os.kill(named.reader(), signal.SIGSTOP)
        named.symbols.hurry()
        assert named.names(0x20) == ["0x20"]


def test_the_reader_ends_with_the_program() -> None:
    """Killed in any way, the program leaves no reader behind."""
    code = (
        "import os; from redirty.collector.foreign.symbols import Symbols; s = Symbols(); "
        "s.request(os.getpid(), [16]); s.finish(); print(s._reader.pid, flush=True); "
        "os.kill(s._reader.pid, 19); os.kill(os.getpid(), 9)"
    )
    read, write = os.pipe()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    os.waitpid(child, 0)
    reader = int(os.read(read, 100))
    os.close(read)
    wait_until(lambda: has_ended(reader), "the end of the reader")
