"""A mirror as the parent of a CRIU dump, in an emulated machine with Debian's 6.12 kernel: CRIU needs soft-dirty
bits. The restored program continues to count with unchanged memory.
"""

from __future__ import annotations

import shutil

import pytest

from tests.tiers import require
from tests.vm.guest import booted, in_guest
from tests.vm.machine import despite_the_emulator

MIB, HOT = 24, 512
PAGES = MIB * 256
_SPARE = 200  # pages of its stack, data and heap that may be written besides


@despite_the_emulator
def test_criu_dumps_on_top_of_a_mirror() -> None:
    # no package of Ubuntu 24.04 and none of Debian 13 has it
    if shutil.which("criu", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("needs criu (Debian package criu)")
    require(shutil.which("crit"), "needs crit (Debian package criu)")
    with booted() as vm:
        found = in_guest(vm, "guest_criu.py", str(MIB), str(HOT))
    print(found["parent"], found["dump"], found["stats"], found["restored"], found["spoiled"])
    passes = found["mirror"]["passes"]
    assert len(passes) == 4 and all(p["sent_pages"] for p in passes), passes
    assert found["parent"]["own"] >= PAGES and not found["parent"]["parent"]
    # all that was not written since the mirror is left to it
    dump = found["dump"]
    assert dump["parent"] >= PAGES - HOT
    assert 0 < dump["own"] <= HOT + _SPARE
    stats = found["stats"]
    assert (stats["pages_skipped"], stats["pages_written"]) == (dump["parent"], dump["own"])
    count, checks, wrong = found["at_dump"]
    assert count and checks and not wrong
    restored = found["restored"]
    assert restored["after"] > restored["before"] >= count and not restored["wrong"], restored
    # and this would have shown, had a page not been right
    assert found["spoiled"]["wrong"], found["spoiled"]
