"""The end of a session: every part is closed, whatever fails, and the target is resumed first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror import session
from redirty.collector.mirror.observer import MirrorObserver
from redirty.collector.mirror.precopy import Precopy
from redirty.collector.mirror.request import MirrorRequest

PARTS = ("Injector", "Tracer", "MirrorState", "Pipeline", "Recorder")
ORDER = ["freezer", "recorder", "pipeline", "mirrorstate", "tracer", "sink", "injector"]


class Parts:
    """Replaces the parts of a session.

    Attributes:
        closed: names of the parts in the order in which they were closed.
        made: names of the parts in the order in which they were made.
        fails: the part whose construction fails.
        close_fails: the part whose close() fails.
    """

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.made: list[str] = []
        self.fails = ""
        self.close_fails = ""

    def make(self, name: str) -> Any:
        if name == self.fails:
            raise RedirtyError(f"no {name}")
        self.made.append(name)
        spaces: dict[int, object] = {}
        return SimpleNamespace(
            close=lambda: self.close(name), begin=lambda: None, spaces=spaces, logged=lambda: None
        )

    def close(self, name: str) -> None:
        self.closed.append(name)
        if name == self.close_fails:
            raise RedirtyError(f"cannot close {name}")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    found = Parts()

    def maker(name: str) -> Any:
        return lambda *_arguments, **_options: found.make(name.lower())

    for name in (*PARTS, "Freezer"):
        monkeypatch.setattr(session, name, maker(name))
    for name in ("choose", "regions_for", "scan_supported", "trim_heap", "drop_compiler_memory"):
        monkeypatch.setattr(session, name, lambda *_arguments: None)

    def run(_precopy: object) -> dict[str, Any]:
        found.make("mirror")
        return {"made": True}

    monkeypatch.setattr(Precopy, "run", run)
    return found


def make_session(parts: Parts) -> session.MirrorSession:
    target = SimpleNamespace(follow_fork=False, members=list)
    destination = SimpleNamespace(open=lambda _limiter: parts.make("sink"))
    request = MirrorRequest(cast(Any, target), cast(Any, destination))
    return session.MirrorSession(request, MirrorObserver())


def test_parts_are_closed_after_a_mirror(parts: Parts) -> None:
    made = make_session(parts)
    assert made.run() == made.information == {"made": True}
    assert parts.closed == ORDER


@pytest.mark.parametrize("fails", [*ORDER, "mirror"])
def test_parts_that_were_made_are_closed_when_another_fails(parts: Parts, fails: str) -> None:
    parts.fails = fails
    with pytest.raises(RedirtyError, match=f"no {fails}"):
        make_session(parts).run()
    made = {name for name in parts.made if name != "mirror"}
    assert parts.closed == [name for name in ORDER if name in made]


@pytest.mark.parametrize("close_fails", ORDER)
def test_all_parts_are_closed_when_the_close_of_one_fails(parts: Parts, close_fails: str) -> None:
    parts.close_fails = close_fails
    with pytest.raises(RedirtyError, match=f"cannot close {close_fails}"):
        make_session(parts).run()
    assert parts.closed == ORDER
