"""The documented schema of `predict --json` describes what it prints, for every policy and verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redirty.collector.cli import main as cli
from redirty.collector.model.predict import SCHEMA

from tests.support.paths import ROOT
from tests.support.screen_factories import REDIS
from tests.support.written_rounds import Process, make_rounds, uniform, write_recording

FILE = ROOT / "docs" / "predict.schema.json"
POLICIES = (
    "redirty", "qemu", "qemu-auto-converge", "qemu-dirty-limit:1MB", "qemu-postcopy", "qemu-multifd",
    "cloud-hypervisor", "cloud-hypervisor:force", "criu:3", "criu-page-server:2", "xen",
)  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "number": (int, float), "integer": (int,),
}  # fmt: skip


def wrong(value: Any, schema: dict[str, Any], at: str = "$") -> list[str]:
    """Return what differs from a schema, of the keywords that ours has. An unknown keyword is an error, too."""
    known = {
        "$schema", "title", "description", "type", "properties", "required", "additionalProperties",
        "items", "enum", "const",
    }  # fmt: skip
    found = [f"{at}: keyword {k}" for k in schema.keys() - known]
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    fits = [
        t
        for t in types
        if isinstance(value, _TYPES[t]) and (t == "boolean") == isinstance(value, bool)
    ]
    if types and not fits:
        return [*found, f"{at}: {value!r} is not {types}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r}")
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{at}: no {key}" for key in schema.get("required", []) if key not in value]
        for key, one in value.items():
            if key in properties:
                found += wrong(one, properties[key], f"{at}.{key}")
            elif more is False:
                found.append(f"{at}: unknown {key}")
            elif isinstance(more, dict):
                found += wrong(one, more, f"{at}.{key}")
    if isinstance(value, list):
        for i, one in enumerate(value):
            found += wrong(one, schema.get("items", {}), f"{at}[{i}]")
    return found


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert cli.main(["predict", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rounds = make_rounds([Process(uniform(2000, 3000.0), 6000)], [0.25] * 8, [0.004] * 8)
    return write_recording(tmp_path_factory.mktemp("schema") / "rec", rounds)


@pytest.mark.parametrize("rate", ["2Mbit", "1Gbit"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_prediction_fits_the_schema(
    policy: str, rate: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = json.loads(FILE.read_text())
    assert schema["properties"]["schema"]["const"] == SCHEMA
    found = said(capsys, small, "--bandwidth", rate, "--policy", policy, "--compression", "1.5")
    assert wrong(found, schema) == []
    parts = found["parts"]
    if found["total_s"] is not None:
        seconds = sum(v for k, v in parts.items() if k.endswith("_s") and k != "zero_pages_s")
        assert seconds == pytest.approx(found["total_s"], abs=1e-4)


def test_a_recording_of_a_real_process_fits_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(FILE.read_text())
    found = said(capsys, REDIS, "--bandwidth", "92Mbit", "--stop-cost", "3ms")
    assert wrong(found, schema) == []
    damaged = {**found, "converges": "yes", "passes": [{"pass": 1}], "more": 1}
    assert len(wrong(damaged, schema)) == 5, "the check finds what is wrong"


@pytest.mark.parametrize("ratio", ["0.5", "auto", "-2", "nan", "2:1", "1e9", ""])
def test_a_compression_that_is_none(ratio: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(REDIS), "--bandwidth", "1Gbit", f"--compression={ratio}"]
    assert cli.main(words) == 2
    assert "--compression must be a ratio between 1 and 1000" in capsys.readouterr().err
