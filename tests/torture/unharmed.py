"""Stops of a target, again and again, in each state that it can be in; it must never notice.

Each of the three things that redirty does by ptrace (a userfaultfd injected, all threads held, page tables
moved) meets the program unharmed.c while its cgroup is frozen or throttled, while it is stopped, traced,
forks, executes itself, ends or has many threads; with a process of ours killed in the middle or not.
As a script: python -m tests.torture.unharmed --times 1000
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from redirty.collector.errors import ArmError, GoneError
from redirty.collector.ptrace.freezer_client import FreezeError, Freezer
from redirty.collector.ptrace.injector_client import Injector

from tests.support.relocation_loop import Relocator
from tests.support.target_state import debugged, task_fields
from tests.support.waiting import PATIENCE_S, wait_until
from tests.workloads.process import Program, WorkloadError

_BATCH = 50  # times, after which the program is asked
_STOP_S = 1.0
# Nothing hinders these states' threads: they stop, if late on a busy machine.
_PATIENT, _PATIENT_STOP_S = ("quiet", "forking", "crowded"), 30.0
_KILL_DELAYS_S = (0.001, 0.005, 0.02)  # after the process appears, at most


class Unharmed(Program):
    """Drives unharmed."""

    def __init__(self, mode: str = "stay", crowd: int = 2, *, tolerant: bool = False) -> None:
        """Start it; tolerant: EINTR is no error, as something else than redirty causes it."""
        wrapper = ("env", "UNHARMED_EINTR=1") if tolerant else ()
        super().__init__("unharmed", [mode, crowd], wrapper=wrapper)

    def errors(self) -> dict[str, list[int]]:
        """Return what went wrong: part -> [number of times, detail of the first]."""
        answer = self.command("")
        found: dict[str, list[int]] = answer["errors"]
        if answer["before"]:
            found["before an exec"] = [answer["before"], 0]
        return found

    def loops(self) -> dict[str, int]:
        """Return how often each part has done its work."""
        found: dict[str, int] = self.command("")["loops"]
        return found

    def assert_unharmed(self, *, executes: bool = False) -> None:
        """Check that every part works on, that nothing went wrong, and that nothing is attached."""
        wait_until(lambda: not attached(self.pid), "nothing is attached any more")
        if not executes:
            before = self.loops()
            wait_until(
                lambda: all(now > before.get(part, 0) for part, now in self.loops().items()),
                "every part works on",
            )
        errors = self.errors()
        assert not errors, f"harmed: {errors}"


def attached(pid: int) -> bool:
    """Return whether a thread of a process is traced or stopped by a tracer."""
    found = task_fields(pid, "TracerPid", "State")
    return any(tracer != "0" or state[0] == "t" for tracer, state in found.values())


def is_stopped_or_over(pid: int) -> bool:
    """Return whether a thread of a process is stopped, by a signal or a tracer, or the process has ended."""
    states = [state[0] for (state,) in task_fields(pid, "State").values()]
    return any(state in "Tt" for state in states) or all(state in "ZX" for state in states)


# ---- what is done to it ----


class Actions:
    """The things that redirty does to a target, by name."""

    def __init__(
        self, pid: int, rng: random.Random, *, kill: bool, stop_s: float = _STOP_S
    ) -> None:
        """Prepare it.

        Args:
            kill: whether the process that does it is killed meanwhile.
            stop_s: how long its threads may take to stop.
        """
        self.stop_s = stop_s
        self.pid = pid
        self.kill = kill
        self.outcomes: Counter[str] = Counter()
        self._rng = rng
        self._injector = Injector()
        self._freezer = Freezer()
        self._relocator = Relocator(pid, 2, stop_s)

    def act(self, name: str) -> None:
        """Do it once, and count how it ended."""
        try:
            getattr(self, name)()
            self.outcomes["done"] += 1
        except (GoneError, ProcessLookupError, FileNotFoundError):
            self.outcomes["gone"] += 1
        except (ArmError, FreezeError) as e:
            text = str(e).replace(str(self.pid), "PID")
            self.outcomes[" ".join(text.split(":")[-1].split()[:6])] += 1

    def inject(self) -> None:
        """Inject a userfaultfd, and close it."""
        with self._killed_meanwhile(lambda: self._child_of(self._injector)):
            descriptor, _ = self._injector.userfaultfd(self.pid, self.stop_s)
            os.close(descriptor)

    def hold(self) -> None:
        """Stop all threads, read their states, resume them."""
        with self._killed_meanwhile(lambda: self._freezer._process.pid):
            self._freezer.stop([self.pid], limit_s=10 * self.stop_s, wait_s=self.stop_s)
            self._freezer.request_states()
            self._freezer.states()
            self._freezer.release()

    def move(self) -> None:
        """Allocate all its page tables anew."""
        refused = sum(self._relocator.refused.values())
        with self._killed_meanwhile(lambda: self._child_of(self._relocator.injector)):
            self._relocator.round()
        if sum(self._relocator.refused.values()) > refused:
            reason = next(reversed(self._relocator.refused))
            self.outcomes["refused: " + " ".join(reason.split(":")[-1].split()[:6])] += 1

    @staticmethod
    def _child_of(injector: Injector) -> int:
        if injector._process is None:
            return 0
        server = injector._process.pid
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return int(children[-1]) if children else 0

    @contextlib.contextmanager
    def _killed_meanwhile(self, whom: Callable[[], int]) -> Iterator[None]:
        if not self.kill:
            yield
            return
        over = threading.Event()
        delay_s = self._rng.uniform(0, self._rng.choice(_KILL_DELAYS_S))

        def kill() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    if pid := whom():
                        time.sleep(delay_s)
                        os.kill(pid, signal.SIGKILL)
                        return
                time.sleep(0.0001)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join()

    def close(self) -> None:
        """End the helpers; what one of them still has to restore, it restores by itself."""
        self._injector.close()
        self._freezer.close()
        self._relocator.close()


# ---- the states that it is in ----


@contextlib.contextmanager
def _meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """Run a step again and again in a thread."""
    over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not over.is_set():
                step()
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if failures:
            raise failures[0]


@contextlib.contextmanager
def _group(parent: Path, pid: int) -> Iterator[Path]:
    """Move a process into a cgroup of its own below another one."""
    group = parent / f"redirty-unharmed-{os.getpid()}-{pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        with contextlib.suppress(ProcessLookupError):
            (parent / "cgroup.procs").write_text(str(pid))
        wait_until(lambda: not (group / "cgroup.procs").read_text().strip(), "an empty cgroup")
        group.rmdir()


def freezers() -> dict[str, tuple[Path, str, str, str]]:
    """Return what freezes here, by name: directory, file, what freezes, what thaws."""
    found = {}
    for place in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (place / "cgroup.controllers").exists():
            found["v2"] = place, "cgroup.freeze", "1", "0"
    if (v1 := Path("/sys/fs/cgroup/freezer")).is_dir():
        found["v1"] = v1, "freezer.state", "FROZEN", "THAWED"
    return found


@contextlib.contextmanager
def thawing(pid: int, rng: random.Random, *, version: str = "v2") -> Iterator[None]:
    """Freeze and thaw a process at random moments."""
    place, name, freeze, thaw = freezers()[version]
    with _group(place, pid) as group:

        def step() -> None:
            (group / name).write_text(freeze)
            time.sleep(rng.uniform(0, 0.01))
            (group / name).write_text(thaw)
            time.sleep(rng.uniform(0, 0.01))

        try:
            with _meanwhile(step):
                yield
        finally:
            (group / name).write_text(thaw)


@contextlib.contextmanager
def frozen(pid: int, _rng: random.Random, *, version: str = "v2") -> Iterator[None]:
    """Keep a process frozen."""
    place, name, freeze, thaw = freezers()[version]
    with _group(place, pid) as group:
        try:
            (group / name).write_text(freeze)
            yield
        finally:
            (group / name).write_text(thaw)


@contextlib.contextmanager
def throttled(pid: int, rng: random.Random) -> Iterator[None]:
    """Give a process a share of a processor, from 1 % up, that changes all the time."""
    with _group(Path("/sys/fs/cgroup/cpu"), pid) as group:

        def step() -> None:
            period = rng.choice((10000, 100000))
            share = rng.choice((0.01, 0.02, 0.05, 0.1, 0.3))
            (group / "cpu.cfs_quota_us").write_text("-1")
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(max(int(share * period), 1000)))
            time.sleep(rng.uniform(0, 0.5))

        try:
            with _meanwhile(step):
                yield
        finally:
            (group / "cpu.cfs_quota_us").write_text("-1")


@contextlib.contextmanager
def stopped(pid: int, rng: random.Random) -> Iterator[None]:
    """Stop and continue a process at random moments, as a shell does."""

    def step() -> None:
        os.kill(pid, signal.SIGSTOP)
        # Any thread: after a kill the borrowed one may wait, as for a vfork, for ours, which is stopped.
        wait_until(lambda: is_stopped_or_over(pid), "stopped: SIGSTOP is not lost")
        time.sleep(rng.uniform(0, 0.01))
        os.kill(pid, signal.SIGCONT)
        time.sleep(rng.uniform(0, 0.01))

    try:
        with _meanwhile(step):
            yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def traced(pid: int, _rng: random.Random) -> Iterator[None]:
    """Have somebody else trace a process, who lets it run."""
    with debugged(pid):
        yield


@contextlib.contextmanager
def quiet(_pid: int, _rng: random.Random) -> Iterator[None]:
    """Leave a process alone."""
    yield


State = Callable[[int, random.Random], contextlib.AbstractContextManager[None]]
STATES: dict[str, tuple[State, str, int]] = {
    "quiet": (quiet, "stay", 2),
    "frozen": (frozen, "stay", 2),
    "thawing": (thawing, "stay", 2),
    "frozen-v1": (lambda pid, rng: frozen(pid, rng, version="v1"), "stay", 2),
    "thawing-v1": (lambda pid, rng: thawing(pid, rng, version="v1"), "stay", 2),
    "throttled": (throttled, "stay", 1),
    "stopped": (stopped, "stay", 2),
    "traced": (traced, "stay", 2),
    "forking": (quiet, "fork", 1),
    "executing": (quiet, "exec", 1),
    "crowded": (quiet, "stay", 100),
    "throttled-crowd": (throttled, "stay", 80),
    "ending": (quiet, "stay", 2),
}
"""name -> the state, the program's mode, the number of its threads that only sleep."""
ACTIONS = ("inject", "hold", "move")


def run(state: str, action: str, times: int, seed: int, *, kill: bool) -> Counter[str]:
    """Do something to a target many times; return how often it ended how.

    Raises: AssertionError when the target was harmed.
    """
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    enter, mode, crowd = STATES[state]
    if (state, action) == ("frozen-v1", "hold"):
        times = max(times // 20, 1)  # each waits a second for threads that do not stop
    left = times
    while left > 0:
        batch = min(left, 1 if state == "ending" else _BATCH)
        left -= batch
        # A stop or a freeze by others ends such calls, too; and where our process is killed before it could let
        # a call begin again, that one ends as after any stop.
        tolerant = kill or state.startswith(("frozen", "thawing", "stopped"))
        with Unharmed(mode, crowd, tolerant=tolerant) as program:
            actions = Actions(
                program.pid,
                rng,
                kill=kill,
                stop_s=_PATIENT_STOP_S if state in _PATIENT else _STOP_S,
            )
            try:
                if state == "ending":
                    _end_meanwhile(program, actions, action, rng)
                else:
                    with enter(program.pid, rng):
                        for _ in range(batch):
                            actions.act(action)
                    program.assert_unharmed(executes=mode == "exec")
            except (WorkloadError, FileNotFoundError) as e:
                raise AssertionError(f"harmed: {e} (seed {seed})") from e
            finally:
                actions.close()
            outcomes += actions.outcomes
    return outcomes


def _end_meanwhile(program: Unharmed, actions: Actions, action: str, rng: random.Random) -> None:
    """End a program while it is acted on; it must end by that signal, and by nothing else."""
    number = rng.choice((signal.SIGTERM, signal.SIGKILL))

    def end() -> None:
        time.sleep(rng.uniform(0, 0.08))
        os.kill(program.pid, number)

    ender = threading.Thread(target=end)
    ender.start()
    try:
        actions.act(action)
    finally:
        ender.join()
    assert program.wait(PATIENCE_S) == -number


def main() -> int:
    """Run the states and actions that were asked for, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.unharmed", description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="of each; default 1000")
    parser.add_argument("--state", choices=STATES, action="append", help="default: all")
    parser.add_argument("--action", choices=ACTIONS, action="append", help="default: all")
    parser.add_argument("--kill", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    kills = {"no": (False,), "yes": (True,), "both": (False, True)}[options.kill]
    harmed = 0
    for state in options.state or STATES:
        for action in options.action or ACTIONS:
            for kill in kills:
                name = f"{state:15} {action:6} {'killed' if kill else '':6}"
                started = time.monotonic()
                try:
                    outcomes = run(state, action, options.times, options.seed, kill=kill)
                    result = ", ".join(f"{n} {what}" for what, n in outcomes.most_common())
                except AssertionError as e:
                    harmed += 1
                    result = f"HARMED: {e}"
                print(f"{name} {time.monotonic() - started:6.1f} s  {result}", flush=True)
    print(f"seed {options.seed}: harmed {harmed}")
    return 1 if harmed else 0


if __name__ == "__main__":
    sys.exit(main())
