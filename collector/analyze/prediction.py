"""The prediction of a recording: one answer for every command that gives one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redirty.collector.analyze import counted_once, load
from redirty.collector.analyze.observations import observe
from redirty.collector.model.predict import as_json, forecast
from redirty.collector.model.prediction import Answer, Question


def predict(directory: Path, question: Question) -> tuple[Answer, dict[str, Any]]:
    """Return the answer to a question, and the same as a JSON-serializable dict.

    Raises: RedirtyError when the recording cannot be read, or has no complete round; UsageError for an unknown
        policy.
    """
    meta = load.load_meta(directory)
    seen = observe(directory, meta)
    answer = forecast(seen, question)
    found = as_json(answer, seen.mappings)
    found["copier_bytes_per_s"] = None  # not measured here
    found["notes"] += counted_once.notes(meta, load.load_rounds(directory))
    if not meta.get("complete"):
        found["notes"].append("the recording ended early: only its complete rounds count")
    return answer, found
