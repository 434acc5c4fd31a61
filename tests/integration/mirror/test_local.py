"""redirty mirror into a directory: equal to the target's memory, whatever the target does meanwhile."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mirror_oracle import CoreFile, assert_same_memory, let_run, mirror_json
from tests.support.redirty_cli import Done, run_redirty
from tests.support.servers import postgres, redis
from tests.tiers import require_program
from tests.workloads.driver import Checksum, Churn, Phases, Sweep, Writer
from tests.workloads.torture import Torture

pytestmark = pytest.mark.usefixtures("tracing")

PATIENT = ("--downtime", "1h", "--passes", "3")  # that converge on any machine


def mirror(*words: object, code: int = 0) -> Done:
    done = run_redirty("mirror", *words)
    assert done.code == code, done
    assert "Traceback" not in done.err, done.err
    return done


@contextlib.contextmanager
def stopped_mirror(*target: object, to: Path, **more: object) -> Iterator[Done]:
    """Make a mirror, and leave the target stopped so that both can be compared; resume it at the end."""
    done = mirror(*target, "--to", to, "--leave", "stopped", "--verify=full", *PATIENT)
    pids = mirror_json(to)["target"]["pids"]
    try:
        yield done
    finally:
        let_run(*pids)


def test_every_kind_of_mapping_is_mirrored(tmp_path: Path) -> None:
    """Pages are written before, between and not at all; dropped, moved and unmapped during the mirror."""
    to = tmp_path / "mirror"
    with Phases() as phases:
        for name in list(phases.areas):
            phases.write(name, "random", seed=3, count=500)
        phases.read("anon", "stride:3", seed=1)  # pages of zeros that nobody wrote
        phases.mprotect("private_file", writable=False, first=0, count=100)
        with stopped_mirror("-p", phases.pid, to=to):
            assert assert_same_memory(to) > 40 << 20
        assert mirror_json(to)["verified"] is True


def test_a_mirror_is_equal_while_threads_write_and_mappings_change(tmp_path: Path) -> None:
    """The torture workload has all kinds of mappings, mremap, madvise, and children."""
    for seed in (random.randrange(1, 1 << 30),):
        to = tmp_path / f"mirror{seed}"
        print(f"seed {seed}")
        with Torture(seed, threads=4, kernel_writes=0) as torture:
            torture.go()
            time.sleep(0.3)
            with stopped_mirror("--tree", torture.pid, to=to):
                assert_same_memory(to)


def test_a_mirror_is_equal_while_the_mapping_list_changes(tmp_path: Path) -> None:
    to = tmp_path / "mirror"
    with Churn(2000) as churn:
        churn.write(1, 500)
        churn.start()
        with stopped_mirror("-p", churn.pid, to=to):
            assert_same_memory(to)
        assert churn.stop() > 0


@pytest.mark.parametrize("pattern", ["cyclic", "uniform", "hot_cold"])
def test_writers_of_a_known_rate_are_mirrored(tmp_path: Path, pattern: str) -> None:
    to = tmp_path / "mirror"
    with Writer(64) as writer:
        writer.start(pattern, 20_000, 16_384)
        with stopped_mirror("-p", writer.pid, "--bandwidth", "400MiB", to=to):
            assert_same_memory(to)
        writer.signal(signal.SIGKILL)  # else it would run to its end


@pytest.mark.parametrize("kind", ["thp", "memfd", "file"])
def test_large_pages_and_files_are_mirrored(tmp_path: Path, kind: str) -> None:
    to = tmp_path / "mirror"
    with Sweep(64, kind, directory=tmp_path) as sweep:
        running = threading.Event()

        def rewrite() -> None:
            while not running.is_set():
                sweep.sweep(stride=3)

        thread = threading.Thread(target=rewrite)
        thread.start()
        try:
            with stopped_mirror("-p", sweep.pid, to=to):
                assert_same_memory(to)
        finally:
            running.set()
            thread.join()


def test_the_target_is_unharmed(target: Checksum, tmp_path: Path) -> None:
    for i in range(2):
        mirror("-p", target.pid, "--to", tmp_path / f"m{i}", *PATIENT)
    result = target.stop()
    assert result.errors == 0, result
    assert result.loops > 0


def test_redis_under_load_is_mirrored_and_gdb_reads_it(tmp_path: Path) -> None:
    gdb = require_program("gdb", "gdb")
    to = tmp_path / "mirror"
    with redis() as server:
        server.ask("set", "kept", "unchanged")
        with server.load():
            server.server.wait_ready(lambda: int(server.ask("dbsize")) > 20_000)
            with stopped_mirror("-p", server.pid, to=to):
                assert_same_memory(to)
        assert server.ask("get", "kept") == "unchanged"
        server_path, core = "/usr/bin/redis-server", to / "memory.core"
        shown = subprocess.run(
            [gdb, "-batch", "-nx", "-ex", "info threads", "-ex", "bt", server_path, core],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "epoll_wait" in shown or "aeMain" in shown or "main" in shown, shown
        threads = CoreFile(to / "memory.core").threads()
        for tid in threads:
            assert f"LWP {tid}" in shown


_PROGRAM = """
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
volatile unsigned long known_value = 0x1122334455667788;
static void innermost(void) { for (;;) pause(); }
static void *waiter(void *p) { (void)p; innermost(); return 0; }
int main(void) {
    pthread_t t;
    pthread_create(&t, 0, waiter, 0);
    known_value += 1;
    puts("ready"); fflush(stdout);
    innermost();
}
"""


def test_gdb_reads_threads_variables_and_stacks(tmp_path: Path) -> None:
    gdb = require_program("gdb", "gdb")
    source, program, to = tmp_path / "p.c", tmp_path / "p", tmp_path / "mirror"
    source.write_text(_PROGRAM)
    subprocess.run(["gcc", "-g", "-O0", "-pthread", "-o", program, source], check=True)
    with subprocess.Popen([program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            mirror("-p", process.pid, "--to", to)
        finally:
            process.kill()
    commands = ["info threads", "print/x known_value", "thread apply all bt"]
    words = [word for line in commands for word in ("-ex", line)]
    shown = subprocess.run(
        [gdb, "-batch", "-nx", *words, program, to / "memory.core"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "0x1122334455667789" in shown, shown
    assert shown.count("innermost") >= 2 and "waiter" in shown and "main ()" in shown, shown
    assert shown.count("LWP") >= 2, shown


def test_postgres_is_mirrored_under_pgbench(tmp_path: Path) -> None:
    """A tree of processes is mirrored with its shared memory, which all of them map."""
    to = tmp_path / "mirror"
    with postgres() as server:
        server.fill(5)
        with server.load():
            server.server.wait_ready(
                lambda: int(server.sql("select count(*) from pgbench_history")) > 100
            )
            with stopped_mirror("--tree", server.pid, to=to):
                assert_same_memory(to)
                assert len(mirror_json(to)["target"]["pids"]) > 5
        assert int(server.sql("select count(*) from pgbench_accounts")) == 500_000


def test_a_mirror_that_will_not_converge_says_what_would_suffice(tmp_path: Path) -> None:
    to = tmp_path / "mirror"
    with Writer(64) as writer:
        writer.start("cyclic", 40_000, 16_384)
        words = ["-p", writer.pid, "--to", to, "--bandwidth", "30MiB", "--downtime", "20ms"]
        done = mirror(*words, code=1)
        assert writer.alive
        writer.signal(signal.SIGKILL)
    assert "will not converge" in done.err
    assert "would suffice" in done.err
    assert not to.exists()


def test_mirrors_that_start_at_random_moments_are_equal(tmp_path: Path) -> None:
    """Each mirror starts at a random moment of a workload, and is compared with it."""
    rng = random.Random(5)
    with Writer(32) as writer:
        writer.start("uniform", 30_000, 8192)
        for i in range(2):
            time.sleep(rng.uniform(0, 0.3))
            to = tmp_path / f"m{i}"
            with stopped_mirror("-p", writer.pid, to=to):
                assert_same_memory(to)
        writer.signal(signal.SIGKILL)
