"""curves.csv and working_set.csv, written as rounds end."""

from __future__ import annotations

from redirty.collector import files
from redirty.collector.folders import Folder
from redirty.collector.metrics.counted_once import CountedOnce
from redirty.collector.metrics.within import WrittenWithin
from redirty.collector.metrics.write_curves import WindowCurves, inside
from redirty.collector.recording import columns
from redirty.collector.tracking.rounds import Round


class CurveFiles:
    """Both files of a recording, open for appending.

    Raises: RedirtyError when they cannot be created.
    """

    def __init__(self, folder: Folder) -> None:
        self._points = files.CsvFile(folder, "curves.csv", columns.CURVES)
        self._working_sets = files.CsvFile(folder, "working_set.csv", columns.WORKING_SET)
        self._windows = WindowCurves()
        self._within = WrittenWithin()

    def add(self, result: Round, once: CountedOnce | None = None) -> float | None:
        """Write what ends with this round; return the pages written within a second, as last known.

        Raises: RedirtyError when the disk is full.
        """
        finished = self._windows.add(result, once)
        points = [*inside(result, once), *finished.points]
        self._points.append(
            (
                p.round, p.rounds, p.mapping_class,
                f"{p.elapsed_s:.6f}", f"{p.dirty:.10g}", p.redirtied, p.raced,
                None if p.dirty_once is None else f"{p.dirty_once:.10g}", p.redirtied_once,
            )
            for p in points
        )  # fmt: skip
        self._working_sets.append(
            (w.first_round, w.rounds, w.pid, w.dirty_pages) for w in finished.working_sets
        )
        return self._within.add(points)

    def close(self) -> None:
        """Close both files."""
        self._points.close()
        self._working_sets.close()
