"""Real programs to trace, each in a temporary directory, on unix sockets, ended by its own PID."""

from __future__ import annotations

import contextlib
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.processes import ManagedProcess
from tests.support.redirty_cli import ProgramError
from tests.support.waiting import PATIENCE_S, wait_until
from tests.tiers import require, require_program

# What runs until it is told to end dies with this process, even when that is killed with -9.
_DEATH = ("setpriv", "--pdeathsig", "KILL", "--")
_FOR_EVER_S = 1_000_000


class Server(ManagedProcess):
    """A program in the background, whose output goes to a file."""

    def __init__(
        self,
        argv: Sequence[object],
        directory: Path,
        stop: signal.Signals = signal.SIGTERM,
        output: Path | None = None,
    ) -> None:
        self.directory = directory
        self.output = output or directory / "output"
        # A file, not a pipe: it is not read while the program runs, and a full pipe would block it.
        with self.output.open("wb") as out:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )
        super().__init__(process, stop=stop, grace_s=20)

    def text(self) -> str:
        """Return what it has printed."""
        return self.output.read_text(errors="replace")

    def wait_ready(self, ready: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait until it can be used.

        Raises: ProgramError when it ends.
        """

        def is_ready() -> object:
            if not self.alive:
                raise ProgramError(f"the program ended: {self.text()[-2000:]}")
            return ready()

        wait_until(is_ready, f"ready ({self.text()[-500:]!r})", timeout_s=timeout_s)


@contextlib.contextmanager
def scratch(prefix: str, owner: str | None = None) -> Iterator[Path]:
    """Create a temporary directory, owned by another user if need be: a server may not run as root."""
    directory = Path(tempfile.mkdtemp(prefix=f"redirty-{prefix}-"))
    try:
        if owner is not None:
            shutil.chown(directory, owner, owner)
        yield directory
    finally:
        wait_until(lambda: _removed(directory), f"{directory} can be removed")


def _removed(directory: Path) -> bool:
    """Remove a directory; return whether that worked: a server that ends may still write there."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _ask(argv: Sequence[object]) -> str:
    """Run a client and return its answer.

    Raises: ProgramError when it fails.
    """
    done = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise ProgramError(f"{argv[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


class Redis:
    """A redis-server on a unix socket that keeps nothing on disk."""

    def __init__(self, server: Server, socket: Path) -> None:
        self.server = server
        self.pid = server.pid
        self.socket = socket

    def ask(self, *words: object) -> str:
        """Return redis-cli's answer.

        Raises: ProgramError when it fails.
        """
        return _ask(["redis-cli", "-e", "-s", self.socket, *words])

    def load(self, keys: int = 50_000, size: int = 512) -> Server:
        """Start a redis-benchmark that sets random keys until it is closed."""
        # -l: it starts over after each of its runs, and never ends.
        argv = ["redis-benchmark", "-s", self.socket, "-t", "set", "-r", keys, "-d", size]
        argv += ["-c", 8, "-n", 200_000_000, "-q", "-l"]
        output = self.socket.with_name("load")
        return Server([*_DEATH, *argv], self.server.directory, signal.SIGINT, output)


@contextlib.contextmanager
def redis() -> Iterator[Redis]:
    """Run a redis-server."""
    program = require_program("redis-server", "redis-server")
    require_program("redis-benchmark", "redis-tools")
    with scratch("redis") as directory:
        socket = directory / "socket"
        options = ["--port", 0, "--unixsocket", socket, "--save", "", "--appendonly", "no"]
        server = Server([program, *options, "--dir", directory], directory)
        try:
            running = Redis(server, socket)
            server.wait_ready(socket.exists)
            server.wait_ready(lambda: running.ask("ping") == "PONG")
            yield running
        finally:
            server.close()


class Postgres:
    """A PostgreSQL cluster with one database, `bench`, on a unix socket."""

    def __init__(self, server: Server, programs: Path) -> None:
        self.server = server
        self.pid = server.pid
        self._programs = programs
        self._where = ["-h", server.directory, "-U", "postgres"]

    def sql(self, text: str, database: str = "bench") -> str:
        """Return the answer to one statement, columns separated by |.

        Raises: ProgramError when it fails.
        """
        return _ask([self._programs / "psql", *self._where, "-XAtq", "-c", text, database])

    def fill(self, scale: int) -> None:
        """Fill pgbench's tables: 100,000 accounts for each step of the scale."""
        _ask([self._programs / "pgbench", *self._where, "-i", "-q", "-s", scale, "bench"])

    def load(self, clients: int = 4) -> Server:
        """Start a pgbench of its TPC-B-like transactions until it is closed or gets SIGALRM.

        On SIGALRM, by which it also tells that its time is over, it ends its transactions and reports.
        """
        options = ["-n", "-c", clients, "-j", 1, "-T", _FOR_EVER_S]
        argv = [*_DEATH, self._programs / "pgbench", *self._where, *options, "bench"]
        return Server(argv, self.server.directory, output=self.server.directory / "load")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server, which refuses to be run by root."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    require(homes, "needs PostgreSQL (Debian package postgresql)")
    require(_user_exists("postgres"), "needs the user postgres (Debian package postgresql-common)")
    programs = homes[-1].parent
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    with scratch("postgres", owner="postgres") as directory:
        data = directory / "data"
        _ask([*as_user, programs / "initdb", "-N", "-A", "trust", "-U", "postgres", "-D", data])
        argv = [programs / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses="]
        # A fast shutdown: a smart one would wait for clients.
        server = Server([*as_user, *argv], directory, stop=signal.SIGINT)
        try:
            running = Postgres(server, programs)
            server.wait_ready(lambda: _answers(lambda: running.sql("select 1", "postgres")))
            running.sql("create database bench", "postgres")
            yield running
        finally:
            server.close()


def _answers(question: Callable[[], object]) -> bool:
    try:
        question()
    except ProgramError:
        return False
    return True


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def guest(
    directory: Path,
    kernel: Path,
    initramfs: Path,
    append: str,
    memory_mib: int = 256,
    more: Sequence[object] = (),
    wrapper: Sequence[object] = (),
) -> Server:
    """Start an emulated machine whose console is the server's output.

    Args:
        append: more of the kernel's command line.
        more: more of QEMU's command line.
        wrapper: a command that runs QEMU.
    """
    program = require_program("qemu-system-x86_64", "qemu-system-x86")
    # A fifth level of page tables makes every emulated walk longer.
    size = ["-cpu", "max,la57=off", "-smp", 1, "-m", f"{memory_mib}M"]
    plain = ["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    # quiet: the guest's kernel prints nothing after its start. The kernel's self-check of the
    # clock takes a busy host for a broken clock.
    line = f"console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable {append}"
    boot = ["-kernel", kernel, "-initrd", initramfs, "-append", line]
    return Server(
        [*wrapper, *_DEATH, program, "-accel", "tcg", *size, *plain, *boot, *more], directory
    )
