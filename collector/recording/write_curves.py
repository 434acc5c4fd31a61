"""Write curves and working sets while they grow: curves.csv and working_set.csv."""

from __future__ import annotations

from pathlib import Path

from redirty.collector import files
from redirty.collector.metrics.write_curves import WindowCurves, inside
from redirty.collector.recording import columns
from redirty.collector.tracking.rounds import Round


class CurveFiles:
    """Both files of a recording, open for appending.

    Errors: RedirtyError when they cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self._points = files.CsvFile(directory / "curves.csv", columns.CURVES)
        self._windows = files.CsvFile(directory / "working_set.csv", columns.WORKING_SET)
        self._runs = WindowCurves()

    def add(self, result: Round) -> None:
        """Writes down what is known with this round. Errors: RedirtyError (disk full)."""
        ends = self._runs.add(result)
        self._points.append(
            (
                *(p.round, p.rounds, p.mapping_class),
                *(f"{p.elapsed_s:.6f}", f"{p.dirty:.10g}", p.redirtied),
            )
            for p in (*inside(result), *ends.points)
        )
        self._windows.append((w.first_round, w.rounds, w.pid, w.dirty_pages) for w in ends.windows)

    def close(self) -> None:
        """Done."""
        self._points.close()
        self._windows.close()
