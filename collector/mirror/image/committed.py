"""Reads mirror.json of a committed mirror, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redirty.collector import json_text
from redirty.collector.checked_files import read_regular
from redirty.collector.errors import RedirtyError, why
from redirty.collector.pageset import PAGE_SIZE

SCHEMA = 1  # of mirror.json
_MANIFEST_BYTES = 64 << 20
_MAX_ADDRESS = 1 << 57
_MAX_PID = 1 << 31
_MAX_S = 1e12


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the contents of mirror.json.

    Raises:
        RedirtyError: the directory is not a mirror, or was made by another version.
    """
    try:
        information = json_text.parse(read_regular(directory / "mirror.json", _MANIFEST_BYTES))
    except FileNotFoundError:
        raise RedirtyError(f"{directory} is not a mirror: it has no mirror.json") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {directory}/mirror.json: {why(e)}") from None
    except ValueError:
        raise RedirtyError(f"{directory} is not a mirror: invalid mirror.json") from None
    if not isinstance(information, dict) or information.get("state") != "committed":
        raise RedirtyError(f"{directory} is not a mirror: invalid mirror.json")
    if information.get("schema") != SCHEMA:
        raise RedirtyError(
            f"{directory} was made by another version of redirty (schema {information.get('schema')!s:.20}): "
            "use that version"
        )
    return information


class Field:
    """A value of mirror.json, with a name for messages. Its methods raise ValueError for another type."""

    def __init__(self, value: object, name: str) -> None:
        self._value = value
        self._name = name

    def __getitem__(self, key: str) -> Field:
        """Return a value of an object."""
        if not isinstance(self._value, dict) or key not in self._value:
            raise ValueError(f"{self._name}{key} is missing")
        return Field(self._value[key], f"{self._name}{key}.")

    def has(self, key: str) -> bool:
        """Return whether an object has a value that is neither null nor empty."""
        return isinstance(self._value, dict) and bool(self._value.get(key))

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{self._name.removesuffix('.')} is not {what}")

    def items(self) -> list[Field]:
        """Return the values of a list."""
        if not isinstance(self._value, list):
            raise self._wrong("a list")
        return [Field(value, self._name) for value in self._value]

    def whole(self, least: int, most: int) -> int:
        """Return a whole number in a range."""
        number = isinstance(self._value, int) and not isinstance(self._value, bool)
        if not number or not least <= int(str(self._value)) <= most:
            raise self._wrong(f"a number from {least} to {most}")
        return int(str(self._value))

    def pid(self) -> int:
        """Return a process ID."""
        return self.whole(1, _MAX_PID)

    def seconds(self) -> float:
        """Return a number of seconds."""
        value = self._value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= _MAX_S
        ):
            raise self._wrong("a number of seconds")
        return float(value)

    def address(self) -> int:
        """Return an address or size in bytes, in whole pages."""
        if not isinstance(self._value, str):
            raise self._wrong("an address")
        try:
            found = int(self._value, 16)
        except ValueError:
            raise self._wrong("an address") from None
        if not 0 <= found <= _MAX_ADDRESS or found % PAGE_SIZE:
            raise self._wrong("an address of a page")
        return found

    def file_name(self) -> str:
        """Return the name of a file in the directory of the mirror."""
        if not isinstance(self._value, str) or self._value != Path(self._value).name:
            raise self._wrong("the name of a file")
        if "\0" in self._value or not self._value.isprintable():
            raise self._wrong("the name of a file")
        return self._value


def processes(information: dict[str, Any], key: str) -> list[tuple[int, str]]:
    """Return (process ID, name of the core file) of each process. key: which IDs, of `target`.

    Raises:
        ValueError: they are not as they should be.
    """
    fields = Field(information, "")
    pids = [one.pid() for one in fields["target"][key].items()]
    names = [one.file_name() for one in fields["cores"].items()]
    if not pids or len(pids) != len(names) or len(set(names)) != len(names):
        raise ValueError("it does not have one core file for each process")
    return list(zip(pids, names, strict=True))


def each_once(values: Sequence[object], what: str) -> None:
    """Check that no value occurs twice. Raises: ValueError when one does."""
    if len(set(values)) != len(values):
        raise ValueError(f"{what} occurs twice")
