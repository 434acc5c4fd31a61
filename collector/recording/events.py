"""events.parquet: every write fault.

Written in parts while recording, so that nothing is lost if redirty is killed; one file at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.folders import Folder
from redirty.collector.recording.parquet_parts import ParquetParts, arrow

_ROWS_A_PART = 1 << 20


class EventFile:
    """Collects records of the ring buffer and writes them as Parquet."""

    def __init__(self, folder: Folder, started_ns: int) -> None:
        self._arrow, parquet = arrow("--events")
        self._parts = ParquetParts(folder, "events", parquet)
        self._started_ns = started_ns
        self._waiting: list[npt.NDArray[np.void]] = []
        self._rows = 0
        self.total = 0

    def add(self, records: npt.NDArray[np.void]) -> None:
        """Add records (bpf.ringbuf.RECORD); those from before the start are dropped.

        Raises: RedirtyError when a part cannot be written.
        """
        if len(records) and records["ns"][0] < self._started_ns:
            records = records[records["ns"] >= self._started_ns]
        if len(records):
            self._waiting.append(records)
            self._rows += len(records)
            self.total += len(records)
        if self._rows >= _ROWS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Write the collected records as a part.

        Raises: RedirtyError when that fails; they are kept for the next attempt.
        """
        if not self._rows:
            return
        self._parts.add(self._table(np.concatenate(self._waiting)))
        self._waiting, self._rows = [], 0

    def _table(self, records: npt.NDArray[np.void]) -> Any:
        a = self._arrow
        kinds = a.DictionaryArray.from_arrays(
            a.array(records["kind"].astype(np.int8)), a.array(list(abi.KIND_NAMES))
        )
        time_s = (records["ns"].astype(np.int64) - self._started_ns) / 1e9
        return a.table(
            {
                "time_s": time_s,
                "pid": (records["space"] & ((1 << abi.TGID_BITS) - 1)).astype(np.int32),
                "tid": records["tid"].astype(np.int32),
                "address": records["address"],
                "ip": a.array(records["ip"], mask=records["ip"] == 0),
                "kind": kinds,
                "stack_id": a.array(records["stack"], mask=records["stack"] < 0),
            }
        )

    def close(self) -> None:
        """Join the parts into events.parquet.

        Raises: RedirtyError when that fails; the parts are then kept.
        """
        self.flush()
        fields = [(n, abi.EVENT[n]) for n in abi.EVENT.names or ()]
        self._parts.close(self._table(np.empty(0, fields)))
