"""Validation of meta.json, and of rounds.csv against it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redirty.collector.checked_files import open_regular
from redirty.collector.errors import RedirtyError, why
from redirty.collector.units import plural

RESTORE = "restore it from a backup, or record again"
_HEAD_BYTES = 1 << 16  # the header of rounds.csv and a row are far shorter


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_count(value: object) -> bool:
    """Return whether a value is a number 0, 1, 2 ..."""
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
# The keys of meta.json in use. Optional ones (older versions lack some) are checked only for their type.
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
    """Describe the first invalid field; return an empty text when all are valid."""
    for name, (fits, what) in (_NEEDED | _OPTIONAL).items():
        of, key = (meta["target"], name[len(_TARGET) :]) if _TARGET in name else (meta, name)
        if key not in of:
            if name in _NEEDED:
                return f"{name} is missing"
        elif not fits(of[key]):
            return f"{name} is not {what}"
    return ""


def require_rounds(path: Path, rounds: int) -> None:
    """Check that rounds.csv has rows when meta.json reports rounds.

    meta.json has their number only if the recording was closed; one that was interrupted has 0 there, and
    possibly no rows.

    Raises: RedirtyError when rounds.csv is missing or has no rows.
    """
    if rounds == 0:
        return
    claim = f"though meta.json reports {plural(rounds, 'round')}: {RESTORE}"
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            header, *rows = file.read(_HEAD_BYTES).split(b"\n")[:-1]
    except FileNotFoundError:
        raise RedirtyError(f"{path} is missing, {claim}") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    except ValueError:  # not one line
        raise RedirtyError(f"{path} is damaged: it has no round, {claim}") from None
    if b"round" not in header.strip().split(b","):
        raise RedirtyError(f"{path} is damaged: it has no column round, {claim}")
    if not rows:
        raise RedirtyError(f"{path} is damaged: it has no round, {claim}")
