"""The model's input from rounds as they end: the same figures as a recording of them would give."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import CLASSES
from redirty.collector.metrics.write_curves import Point, WindowCurves, inside
from redirty.collector.model.observations import ALL, Observations, Points
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.tracking.rounds import Round

Floats = npt.NDArray[np.float64]

_DIGITS = 6  # of seconds, as in a recording


def points_of(points: Iterable[Point]) -> Points:
    """Convert points of curves to the model's form: every page once, mapping classes as indexes of CLASSES."""
    points = list(points)
    if not points:
        return Points.none()

    def column(value: Callable[[Point], float]) -> Floats:
        return np.array([value(p) for p in points], np.float64)

    classes = [ALL if not p.mapping_class else CLASSES.index(p.mapping_class) for p in points]
    return Points(
        number=column(lambda p: p.round).astype(np.int64),
        rounds=column(lambda p: p.rounds).astype(np.int64),
        mapping_class=np.array(classes),
        elapsed_s=column(lambda p: p.elapsed_s).round(_DIGITS),
        dirty=column(lambda p: float(f"{p.pages:.10g}")),
        redirtied=column(_redirtied),
        raced=column(lambda p: np.nan if p.raced_of_pages is None else p.raced_of_pages),
    )


def _redirtied(point: Point) -> float:
    pages = point.redirtied if point.redirtied_once is None else point.redirtied_once
    return np.nan if pages is None else pages


class ObservedRounds:
    """Collects rounds for the model."""

    def __init__(self) -> None:
        self._curves = WindowCurves()
        self._points: list[Point] = []
        self._rows: list[tuple[float, ...]] = []

    def add(self, result: Round, boundary_s: float) -> None:
        """Add a round that has ended. boundary_s: how long its end took."""
        self._points += [*inside(result), *self._curves.add(result).points]
        spaces = result.spaces
        self._rows.append(
            (
                result.number,
                round(result.duration_s, _DIGITS),
                round(result.arm_s, _DIGITS),
                sum(len(s.present) for s in spaces),
                sum(len(s.dirty) for s in spaces),
                sum(len(s.redirtied) for s in spaces),
                sum(len(s.missed) for s in spaces),
                round(boundary_s, _DIGITS),
            )
        )

    def observations(self) -> Observations:
        """Return the model's input: the rounds so far, at least one."""
        number, duration_s, arm_s, present, dirty, redirtied, missed, boundary_s = np.array(
            self._rows, np.float64
        ).T
        return Observations(
            page_size=PAGE_SIZE,
            number=number.astype(np.int64),
            duration_s=duration_s,
            arm_s=arm_s,
            present=present,
            dirty=dirty,
            redirtied=redirtied,
            missed=missed,
            points=points_of(self._points),
            classes=CLASSES,
            boundary_s=boundary_s,
        )
