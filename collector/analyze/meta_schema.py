"""Whether meta.json has what is used of it, and whether rounds.csv has what it tells of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.units import plural

AGAIN = "restore it from a copy, or record again"
_HEAD_BYTES = 1 << 16  # the header of rounds.csv and a row are far shorter


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_count(value: object) -> bool:
    """0, 1, 2 ..."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 40


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_sharers(value: object) -> bool:
    return isinstance(value, list) and all(
        _is_object(one)
        and is_count(one.get("pid"))
        and _is_text(one.get("comm"))
        and isinstance(one.get("writable"), bool)
        for one in value
    )


_TARGET = "target."
_Test = tuple[Callable[[object], bool], str]
# What is used of meta.json: of what is not always there (of older redirtys, say) only the type.
_NEEDED: dict[str, _Test] = {
    "target": (_is_object, "an object"),
    _TARGET + "description": (_is_text, "a text"),
    _TARGET + "comm": (_is_text, "a text"),
    "probe": (_is_text, "a text"),
    "arm": (_is_text, "a text"),
    "page_size": (_is_size, "a number of bytes"),
    "interval_s": (_is_time, "a number of seconds"),
}
_OPTIONAL: dict[str, _Test] = {
    "complete": (lambda value: isinstance(value, bool), "true or false"),
    "rounds": (is_count, "a count"),
    "features": (_are_texts, "a list of texts"),
    "refused_probes": (_is_object, "an object"),
    "pinned_kib": (is_count, "a count"),
    "shared_outside": (_are_sharers, "a list of processes"),
    "shared_outside_hidden": (is_count, "a count"),
}


def wrong_field(meta: dict[str, Any]) -> str:
    """What is wrong with the first field that is; nothing where none is."""
    for name, (fits, what) in (_NEEDED | _OPTIONAL).items():
        of, key = (meta["target"], name[len(_TARGET) :]) if _TARGET in name else (meta, name)
        if key not in of:
            if name in _NEEDED:
                return f"{name} is missing"
        elif not fits(of[key]):
            return f"{name} is not {what}"
    return ""


def require_rounds(path: Path, rounds: int) -> None:
    """meta.json has their number only when the recording was closed: then rows are in rounds.csv. One
    that was cut off has 0 there, and maybe no rows. Errors: RedirtyError."""
    if rounds == 0:
        return
    told = f"though meta.json tells of {plural(rounds, 'round')}: {AGAIN}"
    try:
        with path.open("rb") as file:
            header, *rows = file.read(_HEAD_BYTES).split(b"\n")[:-1]
    except FileNotFoundError:
        raise RedirtyError(f"{path} is missing, {told}") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    except ValueError:  # not one line
        raise RedirtyError(f"{path} is damaged: it has no round, {told}") from None
    if b"round" not in header.strip().split(b","):
        raise RedirtyError(f"{path} is damaged: it has no column round, {told}")
    if not rows:
        raise RedirtyError(f"{path} is damaged: it has no round, {told}")
