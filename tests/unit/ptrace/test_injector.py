"""The injector: its functions that stop nothing, and its protocol."""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.errors import ArmError, GoneError
from redirty.collector.ptrace.helpers import code_search, procfs, thread_choice
from redirty.collector.ptrace.helpers.arch import architecture
from redirty.collector.ptrace.helpers.errors import TraceeError
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.ptrace.spawn import reap, start_helper

from tests.support.waiting import PATIENCE_S
from tests.tiers import require, require_program


def test_registers_are_where_the_table_says(tmp_path: Path) -> None:
    require(platform.machine() == "x86_64", "needs an x86-64 machine")
    gcc = require_program("gcc", "gcc")
    names = ("rax", "rip", "rsp", "orig_rax", "cs", "rdi", "rsi", "rdx", "r10", "r8", "r9")
    words = ", ".join(f"offsetof(struct user_regs_struct, {n}) / 8" for n in names)
    calls = ("userfaultfd", "close", "clone", "exit", "getpid", "rt_sigreturn")
    numbers = ", ".join(f"SYS_{name}" for name in calls)
    code = f"""
    #include <stddef.h>
    #include <stdio.h>
    #include <sys/syscall.h>
    #include <sys/user.h>
    int main(void) {{
        size_t words[] = {{ sizeof(struct user_regs_struct) / 8, {numbers}, {words} }};
        for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
            printf("%zu ", words[i]);
        return 0;
    }}"""
    source, program = tmp_path / "it.c", tmp_path / "it"
    source.write_text(code)
    subprocess.run([gcc, "-o", program, source], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    arch = architecture()
    assert [int(word) for word in printed] == [
        arch.registers,
        arch.userfaultfd,
        arch.close,
        arch.clone,
        arch.exit,
        arch.getpid,
        arch.sigreturn,
        arch.result,
        arch.counter,
        arch.stack,
        arch.interrupted,
        arch.mode,
        *arch.arguments,
    ]
    assert arch.number == arch.result


def test_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TraceeError, match="riscv64") as refused:
        architecture()
    assert refused.value.code == errno.ENOSYS


def test_a_system_call_instruction_is_found() -> None:
    arch = architecture()
    at = code_search.search(os.getpid(), arch).call
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        memory.seek(at)
        assert memory.read(len(arch.instruction)) == arch.instruction
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(a, 16) for a in line.split()[0].split("-"))
        if start <= at < end:
            assert "x" in line.split()[1]
            assert line.endswith("[vdso]"), "the first choice, as every process has it"
            return
    pytest.fail(f"{at:#x} is not mapped")


def test_no_instruction_anywhere() -> None:
    arch = architecture()
    other = type(arch)(**{**arch.__dict__, "instruction": os.urandom(24)})
    with pytest.raises(TraceeError, match="no system call instruction"):
        code_search.search(os.getpid(), other)


@pytest.fixture
def odd_target(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process whose name and mapped file contain separators of lines."""
    code = (
        "import mmap, sys\n"
        "open('/proc/self/comm', 'wb').write(b'x\\rTracerPid:\\t7')\n"
        "f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 4096)\n"
        "print(flush=True); input()"
    )
    odd = tmp_path / "a\rb\x0cc\u2028d"
    odd.write_bytes(bytes(4096))
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(odd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    program.stdout.readline()
    yield program
    program.kill()
    program.communicate()


def test_names_that_look_like_lines(odd_target: subprocess.Popen[str]) -> None:
    pid = odd_target.pid
    assert procfs.status_field(pid, "TracerPid") == "0"
    assert procfs.status_field(pid, "Tgid") == str(pid)
    assert procfs.status_field(pid, "NoSuchField") == ""
    assert thread_choice.candidates(pid, architecture()) == [pid]
    assert code_search.search(pid, architecture()).call > 0


# ---- the protocol ----


@pytest.fixture
def link() -> Iterator[socket.socket]:
    """Run the injector as a process; return the collector's end of its socket."""
    local, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = start_helper("injector", peer)
    local.settimeout(PATIENCE_S)
    yield local
    local.close()
    reap(program)
    assert program.returncode == 0, "it ends when the collector's end is closed"


def ask(link: socket.socket, request: bytes) -> dict[str, object]:
    link.send(request)
    answer: dict[str, object] = json.loads(link.recv(4096))
    return answer


def test_requests_that_make_no_sense_are_answered(link: socket.socket) -> None:
    for request in (b'{"op": "dance"}', b'{"op": "wait_exec", "userfaultfd": true}', b"{", b"\xff"):
        answer = ask(link, request)
        assert answer["ok"] is False
        assert answer["why"]
    assert ask(link, b'{"op": "go"}') == {"ok": True}


def ended_pid() -> int:
    program = subprocess.Popen(["true"])
    program.wait()
    return program.pid


def test_a_process_that_is_gone(link: socket.socket) -> None:
    request = json.dumps({"op": "inject", "pid": ended_pid(), "timeout_s": 1.0}).encode()
    answer = ask(link, request)
    assert (answer["ok"], answer["errno"]) == (False, errno.ESRCH)


def test_the_client_reports_processes_that_are_gone() -> None:
    client = Injector()
    try:
        with pytest.raises(GoneError):
            client.userfaultfd(ended_pid(), 1.0)
        with pytest.raises(GoneError):
            client.hold_at_exec(ended_pid())
    finally:
        client.close()
        client.close()  # a second time does nothing


def test_an_injector_that_is_killed_is_an_error_not_a_hang() -> None:
    client = Injector()
    with pytest.raises(GoneError):
        client.userfaultfd(ended_pid(), 1.0)
    assert client._process is not None
    client._process.kill()
    client._process.wait()
    with pytest.raises(ArmError, match="the injector process"):
        client.userfaultfd(os.getpid(), 1.0)
    client.close()
