"""The BPF programs compile in every form, also in those that only other kernels accept."""

from __future__ import annotations

import subprocess
import sys

import pytest
from redirty.collector.bpf import btf, hooks, loader
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.probe_support import PROBES

from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.mark.parametrize("byte_maps", [False, True])
@pytest.mark.parametrize("probe", PROBES)
def test_with_all_that_can_be_asked_for(
    probe: str, byte_maps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BPF programs fit the BPF stack exactly: else the compiler aborts the process."""
    monkeypatch.setattr(hooks, "attach", lambda bpf, probe: frozenset((probe,)))
    options = Options(events=True, stacks=True, ring_bytes=4096, force_byte_maps=byte_maps)
    found = loader._compile(options, probe, btf.offset_flags(btf.load()))
    assert not isinstance(found, str), found
    bpf, features, as_bytes = found
    bpf.cleanup()
    assert (features, as_bytes) == (frozenset((probe,)), byte_maps)


_TWO_AT_ONCE = """
import threading
import redirty.bpfprogs as programs
from redirty.collector.bpf import btf
from redirty.collector.bpf.loader import compile_programs
flags = ["-DRD_TABLES=32", *btf.table_offset_flags(btf.load())]
done = []
def compile():
    for _ in range(3):
        compile_programs(programs.tables_source(), flags).cleanup()
    done.append(1)
threads = [threading.Thread(target=compile) for _ in range(2)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert len(done) == 2
"""


def test_two_threads_at_once() -> None:
    """Several compilations at once, as a live screen does, do not crash LLVM."""
    done = subprocess.run(
        [sys.executable, "-c", _TWO_AT_ONCE],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done
