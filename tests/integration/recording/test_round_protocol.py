"""The steps of the round protocol, one by one: their order, and the effect of each.

The torture test shows that nothing is lost; it cannot show every step, because log and scan stand in for each
other. A write right after the arm must be in the next round by the log alone.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.tracking.address_space import AddressSpace

from tests.support.phase_walk import Start
from tests.support.stepped_rounds import assert_same, within
from tests.support.waiting import wait_idle
from tests.tiers import require
from tests.workloads.driver import Pages

STEPS = ("flip", "wait_grace", "drain")


def noting(done: list[str], name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step so that it records its name first."""

    def noted(*arguments: Any) -> Any:
        done.append(name)
        return step(*arguments)

    return noted


def test_the_order_of_the_steps(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a boundary run in order, and end_round() returns after all of them.

    Flip before arm: a fault after the arm belongs to the next round. Grace before drain: BPF no longer writes to
    what is drained.
    """
    walk = start(a=("anon_private", 2))
    done: list[str] = []
    for name in STEPS:
        monkeypatch.setattr(
            walk.live.tracer, name, noting(done, name, getattr(walk.live.tracer, name))
        )
    armed = next(iter(walk.live.recorder.spaces.values())).armed
    assert armed is not None
    monkeypatch.setattr(armed, "arm", noting(done, "arm", armed.arm))
    walk.live.end_round()
    assert done == ["flip", "arm", "wait_grace", "drain"]


@pytest.mark.parametrize("kind", ["anon_private", "anon_shared", "file_shared"])
def test_written_between_the_steps(
    start: Start, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write at each moment of a boundary, and once more after it, is in the next round by the log.

    A page written after the arm faults again, and the fault is logged after the flip.
    """
    walk = start(a=(kind, 2))
    walk.phases.write("a")
    written: dict[str, Pages] = {}

    def then_write(name: str, step: Callable[..., Any], first: int) -> Callable[..., Any]:
        def stepped(*arguments: Any) -> Any:
            answer = step(*arguments)
            written[name] = walk.phases.write("a", f"range:{first}", count=32).pages
            return answer

        return stepped

    with monkeypatch.context() as patched:
        tracer = walk.live.tracer
        for i, name in enumerate(STEPS):
            patched.setattr(tracer, name, then_write(name, getattr(tracer, name), 64 * i))
        patched.setattr(AddressSpace, "arm", then_write("arm", AddressSpace.arm, 64 * len(STEPS)))
        walk.live.end_round()
    for pages in written.values():
        first = int(pages[0]) - walk.phases.areas["a"].first_page
        walk.phases.write("a", f"range:{first}", seed=2, count=len(pages))
    wait_idle(walk.pid)
    space = walk.live.round_of(walk.pid)
    truth = np.sort(np.concatenate(list(written.values())))
    assert_same(within(space.log, walk.phases.areas["a"]), truth, "log")
    assert len(within(space.missed, walk.phases.areas["a"])) == 0


# ---- the grace period ----

# A BPF program that takes long: it copies much memory repeatedly when its process calls getppid().
_SLOW = """
struct much { char bytes[32768]; };
struct seen { u64 pid, begun, ended; };
BPF_ARRAY(buffer, struct much, 1);
BPF_ARRAY(seen, struct seen, 1);

int slow(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct seen *s = seen.lookup(&zero);
	struct much *m = buffer.lookup(&zero);

	if (!s || !m || ctx->args[1] != GETPPID || s->pid != (bpf_get_current_pid_tgid() >> 32))
		return 0;
	s->begun = bpf_ktime_get_ns();
	for (int i = 0; i < 4096; i++)
		bpf_probe_read_kernel(m, sizeof(*m), m);
	s->ended = bpf_ktime_get_ns();
	return 0;
}
"""
_GETPPID = {"x86_64": 110, "aarch64": 173}
_CALLER = "import os, sys\nfor line in sys.stdin: os.getppid(); print(flush=True)"
_ATTEMPTS = 100


def test_grace_waits_for_programs(tracer: Tracer) -> None:
    """A BPF program that runs when wait_grace() is called has ended when it returns."""
    from bcc import BPF

    number = _GETPPID.get(platform.machine())
    require(number is not None, "needs the number of getppid() on this processor")
    require(
        len(os.sched_getaffinity(0)) > 1, "needs two processors: on one it is never seen running"
    )
    bpf = BPF(text=_SLOW.encode(), cflags=[f"-DGETPPID={number}"])
    pipe = subprocess.PIPE
    caller = subprocess.Popen([sys.executable, "-c", _CALLER], stdin=pipe, stdout=pipe)
    assert caller.stdin and caller.stdout
    seen = bpf[b"seen"]
    try:
        bpf.attach_raw_tracepoint(tp=b"sys_enter", fn_name=b"slow")
        for _ in range(_ATTEMPTS):
            seen[0] = seen.Leaf(caller.pid, 0, 0)
            caller.stdin.write(b"\n")
            caller.stdin.flush()
            while not seen[0].begun:
                time.sleep(0)
            running = not seen[0].ended
            tracer.wait_grace()
            ended = seen[0].ended
            caller.stdout.readline()
            if running:  # else it had ended before, while this process waited for a processor
                assert ended
                return
        raise AssertionError("it was never seen running")
    finally:
        caller.stdin.close()
        caller.wait()
        caller.stdout.close()
        bpf.cleanup()
