"""Checks a table of a recording against its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redirty.collector.analyze.schema import (
    MOST_PAGES,
    MOST_WORD,
    Address,
    Number,
    Table,
    Text,
)

if TYPE_CHECKING:
    import pandas as pd

_MAX_SUM = float(1 << 62)  # of a column: sums of 64-bit integers must not overflow


class DamageError(Exception):
    """Damage of a table: what is wrong, as the end of a sentence. The caller knows its path."""


def require_columns(names: list[str], schema: Table) -> list[str]:
    """Return the columns that a table lacks because an older redirty wrote it.

    Raises: DamageError when others are missing, or are not in their place.
    """
    expected = list(schema.kinds)
    missing = [name for name in expected if name not in names]
    there = len(expected) - len(missing)
    if missing and (there < schema.oldest or names != expected[:there]):
        raise DamageError(f"it has no column {missing[0]}")
    return missing


def require_values(frame: pd.DataFrame, schema: Table) -> None:
    """Check all values of a table, whose addresses are numbers already.

    Raises: DamageError at the first that is not as it should be.
    """
    for name, kind in schema.kinds.items():
        if isinstance(kind, Text):
            _require_text(frame[name], kind)
        else:
            limits = Number(0, MOST_WORD, empty=kind.empty) if isinstance(kind, Address) else kind
            _require_numbers(frame[name], limits)
    for less, more in schema.at_most:
        # Unknown values compare as false.
        if bool((frame[less] > frame[more]).any()):
            raise DamageError(f"column {less} is more than {more} in a row")
    if schema.order and len(frame) > 1:
        _require_order(frame, schema)


def _require_text(column: pd.Series[Any], kind: Text) -> None:
    if kind.allowed is None:
        return
    for value in column.unique().tolist():
        if value not in kind.allowed:
            raise DamageError(f"column {column.name} has an unknown value: {value!s:.40}")


def _require_numbers(column: pd.Series[Any], kind: Number) -> None:
    import numpy as np

    wrong = DamageError(f"column {column.name} has a value that is not a number")
    if len(column) == 0:
        return
    values = column.to_numpy()
    if values.dtype.kind not in "iuf":
        raise wrong
    if values.dtype.kind == "f":
        unknown = np.isnan(values)
        if unknown.any():
            if not kind.empty:
                raise wrong
            values = values[~unknown]
            if len(values) == 0:
                return
        if np.isinf(values).any():
            raise wrong
        if kind.whole and (values != np.floor(values)).any():
            raise DamageError(f"column {column.name} has a value that is not whole")
    least, most = values.min(), values.max()
    if least < kind.least or most > kind.most:
        value = least if least < kind.least else most
        raise DamageError(f"column {column.name} has a value out of range: {value:g}")
    if kind.most <= MOST_PAGES and float(values.sum(dtype=np.float64)) > _MAX_SUM:
        raise DamageError(f"column {column.name} has a sum out of range")


def _require_order(frame: pd.DataFrame, schema: Table) -> None:
    import numpy as np

    later = np.zeros(len(frame) - 1, np.bool_)
    same = ~later
    for name in schema.order:
        values = frame[name].to_numpy()
        later |= same & (values[1:] > values[:-1])
        same &= values[1:] == values[:-1]
    right = later if schema.unique else later | same
    if not right.all():
        row = int(np.argmin(right)) + 1  # from 0, after the header
        twice = " or twice" if schema.unique else ""
        raise DamageError(f"row {row + 1} is not in order{twice}, by {' and '.join(schema.order)}")
