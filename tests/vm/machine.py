"""Debian kernels booted in an emulated machine, and commands run in it.

    with Vm("6.12") as vm:
        done = vm.run(["uname", "-r"])

The guest sees this machine's files at the same paths: its root is this machine's root, read-only, under a
layer in the guest's memory that takes all changes. So programs, libraries and the checkout's .venv work in it.
/tmp, /run, /dev, /proc and /sys are the guest's own; directories given as `shares` can be written by both sides.
The only network is the loopback.

Commands and their results travel as files in a shared directory, so output comes back byte for byte. The
emulation is software only and works wherever QEMU runs, about 10 to 20 times slower than the machine itself.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from tests.vm import initramfs, kernels

PROJECT = Path(__file__).resolve().parents[2]
CONSOLE_LINES = 30
POLL_S = 0.05
P = ParamSpec("P")
T = TypeVar("T")
TRIES = 3
LIMIT_S = 3000.0  # of what hangs: an emulated machine on a busy one is slow

# The kernel changes its own code by putting an int3 there first. Before 8.1 QEMU with a thread for each
# emulated processor may translate the int3 just when it is removed again, and keep it: the kernel then
# dies of a trap without an owner (upstream: "accel/tcg: Always lock pages before translation").
_LOST_RACE = "Oops: int3: "
# Where the guest mounts something of its own over this machine's files.
GUEST_OWN = ("/tmp", "/run", "/dev", "/proc", "/sys")
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
    "USER": "root",
}


class VmError(RuntimeError):
    """The VM failed. The message ends with the last lines of its console."""


class VmBootError(VmError):
    """The VM ended, or the time was up, before it was ready for a command."""


class VmDiedError(VmError):
    """The VM ended (a kernel panic, a command that powers off) while a command ran."""


class EmulatorError(VmDiedError):
    """QEMU broke the guest's kernel: not a failure of what ran in it. See `despite_the_emulator`."""


class VmTimeoutError(VmError):
    """A command took too long; the VM has been ended. `stdout`, `stderr`: what the command had written."""

    def __init__(self, message: str, stdout: bytes, stderr: bytes) -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr


@dataclass(frozen=True)
class VmResult:
    """The result of a command. `exit_code` is 128 plus the signal for a command that was killed."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    duration_s: float


def despite_the_emulator(work: Callable[P, T]) -> Callable[P, T]:
    """Repeat the work in a new machine when QEMU lost its race with the guest's kernel; never after any other
    failure.
    """

    @functools.wraps(work)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(TRIES - 1):
            try:
                return work(*args, **kwargs)
            except EmulatorError as e:
                warnings.warn(f"repeated: {e}", stacklevel=2)
        return work(*args, **kwargs)

    return tried


class Vm:
    """A virtual machine: boots on entering the context, and ends on leaving it.

    Attributes:
        kernel: the unpacked kernel.
        boot_s: the seconds that booting took.
    """

    def __init__(
        self,
        kernel: str = "6.12",
        *,
        cpus: int = 2,
        memory_mib: int = 2048,
        append: str = "",
        shares: Sequence[Path] = (),
        qemu_args: Sequence[str] = (),
        boot_timeout_s: float = LIMIT_S,
    ) -> None:
        """Prepare the machine.

        Args:
            kernel: a name in kernels.KERNELS.
            cpus: the number of processors.
            memory_mib: its memory; changed files take memory too.
            append: more of the kernel's command line.
            shares: directories that both sides write, at the same path.
            qemu_args: more arguments for QEMU (a later -cpu or -smp wins).
            boot_timeout_s: how long booting may take.
        """
        self.kernel = kernels.fetch(kernel)
        self.boot_s = 0.0
        self._cpus = cpus
        self._memory_mib = memory_mib
        self._append = append
        self._shares = [path.resolve(strict=True) for path in shares]
        self._qemu_args = qemu_args
        self._boot_timeout_s = boot_timeout_s
        self._control: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._commands = 0

    def __enter__(self) -> Vm:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = LIMIT_S,
        env: Mapping[str, str] | None = None,
        cwd: Path = PROJECT,
        follow: Collection[str] = (),
    ) -> VmResult:
        """Run a command as root and wait for it. Its standard input is empty.

        Args:
            env: added to a small fixed environment.
            follow: which of its "stdout" and "stderr" to copy to this process's own, as it comes.

        Returns: its result; exit code 127: there is no such command.

        Raises: VmTimeoutError, VmDiedError.
        """
        control = self._running()
        self._commands += 1
        out, err, code = (control / f"{self._commands}.{end}" for end in ("out", "err", "exit"))
        words = [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()]
        draft = control / "draft"
        draft.write_text(
            f"cd {shlex.quote(str(cwd))} || exit 125\n"
            f"exec /usr/bin/env -i {shlex.join([*words, *argv])} </dev/null\n"
        )
        draft.rename(control / f"{self._commands}.run")
        begin = time.monotonic()
        copied = dict.fromkeys(follow, 0)

        def copy_output() -> None:
            for name in copied:
                path, stream = {"stdout": (out, sys.stdout), "stderr": (err, sys.stderr)}[name]
                if not path.exists():
                    continue
                with path.open("rb") as file:
                    file.seek(copied[name])
                    if chunk := file.read():
                        copied[name] += len(chunk)
                        stream.buffer.write(chunk)
                        stream.flush()

        ended = self._wait(code, begin + timeout_s, copy_output if follow else None)
        stdout, stderr = (path.read_bytes() if path.exists() else b"" for path in (out, err))
        if ended:
            return VmResult(int(code.read_text()), stdout, stderr, time.monotonic() - begin)
        what = shlex.join(argv)
        if self._alive():
            error: VmError = VmTimeoutError(
                self._explain(f"{what} took more than {timeout_s:g} s"), stdout, stderr
            )
        else:
            emulator = _LOST_RACE in self.console()
            kind = EmulatorError if emulator else VmDiedError
            error = kind(self._explain(f"the VM ended while {what} ran"))
        self.close()
        raise error

    def console(self) -> str:
        """Return what the guest's kernel has printed so far."""
        path = self._running() / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """End the VM, in whatever state, and delete its files. Does nothing the second time."""
        if self._process is not None:
            # It needs no orderly shutdown: its disk is memory.
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._control is not None:
            shutil.rmtree(self._control, ignore_errors=True)
            self._control = None

    def _boot(self) -> None:
        self._control = Path(tempfile.mkdtemp(prefix="redirty-vm."))
        archive = self._control / "initramfs"
        archive.write_bytes(initramfs.build(self.kernel, self._setup()))
        begin = time.monotonic()
        with (self._control / "qemu").open("wb") as messages:
            try:
                self._process = subprocess.Popen(
                    self._command_line(archive),
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                )
            except FileNotFoundError as error:
                raise VmBootError(f"{error.filename} is not installed") from error
        if not self._wait(self._control / "ready", begin + self._boot_timeout_s):
            problem = f"did not boot within {self._boot_timeout_s:g} s"
            if not self._alive():
                problem = "ended while it booted"
            kind = EmulatorError if _LOST_RACE in self.console() else VmBootError
            raise kind(self._explain(f"kernel {self.kernel.release} {problem}"))
        self.boot_s = time.monotonic() - begin

    def _setup(self) -> str:
        """Return shell code for guest-init.sh: the mounts of this VM."""
        kernel = self.kernel
        lines = [
            ("expose", str(kernel.modules), f"/lib/modules/{kernel.release}"),
            ("expose", str(kernel.config.parent), "/boot"),
        ]
        lines += [("share", f"share{n}", str(path)) for n, path in enumerate(self._shares)]
        for path in {PROJECT, Path(sys.prefix).resolve()}:
            if any(path.is_relative_to(own) for own in GUEST_OWN):
                lines.append(("expose", str(path), str(path)))
        return "".join(shlex.join(line) + "\n" for line in lines)

    def _command_line(self, archive: Path) -> list[str]:
        control = archive.parent
        shared = [("root", Path("/"), ",readonly=on"), ("control", control, "")]
        shared += [(f"share{n}", path, "") for n, path in enumerate(self._shares)]
        # fmt: off
        line = [
            # QEMU dies with this process, even when that is killed with -9.
            "setpriv", "--pdeathsig", "KILL", "--",
            "qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none",
            "-machine", "q35", "-accel", "tcg,thread=multi", "-no-reboot",
            # A fifth level of page tables makes every emulated walk longer. QEMU 7.2 emulates
            # AVX2 wrongly: numpy's argsort, which uses it, gives wrong orders.
            "-cpu", "max,la57=off,avx2=off",
            "-smp", str(self._cpus), "-m", f"{self._memory_mib}M",
            "-serial", f"file:{_escaped(control / 'console')}",
            "-kernel", str(self.kernel.image), "-initrd", str(archive),
            # Mitigations cost a lot in emulation. The kernel's self-check of the clock
            # takes a busy host for a broken clock.
            "-append", f"console=ttyS0 panic=-1 mitigations=off tsc=reliable {self._append}",
        ]
        # fmt: on
        for tag, path, options in shared:
            where = f"path={_escaped(path)},security_model=none,multidevs=remap"
            line += ["-fsdev", f"local,id={tag},{where}{options}"]
            line += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return [*line, *self._qemu_args]

    def _wait(
        self, path: Path, deadline: float, each_time: Callable[[], None] | None = None
    ) -> bool:
        """Wait until `path` exists; return False when the VM ended or the deadline passed before."""
        while True:
            alive = self._alive()
            found = path.exists()
            if each_time is not None:
                each_time()
            if found or not alive or time.monotonic() > deadline:
                return found
            time.sleep(POLL_S)

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _running(self) -> Path:
        if self._control is None:
            raise VmError("the VM is not running")
        return self._control

    def _explain(self, problem: str) -> str:
        messages = (self._running() / "qemu").read_text(errors="replace")
        lines = [*messages.splitlines(), *self.console().splitlines()]
        # A kernel that dies prints the cause first; the rest is registers.
        begins = [n for n, line in enumerate(lines) if "Oops: " in line or "Kernel panic" in line]
        first = max(0, min([len(lines) - CONSOLE_LINES, *begins]))
        shown = lines[first : first + CONSOLE_LINES]
        return "\n  ".join([f"{problem}; its last console lines:", *shown])


def _escaped(path: Path) -> str:
    # In QEMU's option lists a comma is written twice.
    return str(path).replace(",", ",,")
