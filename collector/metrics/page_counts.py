"""Sums over rounds: by page, and the average write curve W(t)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.pageset import PAGES_PER_REGION, U64, PageSet, matrix

U32 = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]

_COUNTERS = ("dirty", "redirtied", "faults", "first", "last", "runs")


Selection = slice | npt.NDArray[np.int64]


def _selection(rows: npt.NDArray[np.int64]) -> Selection:
    """Return rows as a slice if they are consecutive, as they mostly are.

    A slice is modified in place; with row numbers numpy modifies a copy and copies it back.
    """
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all()):
        return slice(first, last + 1)
    return rows


def _put(array: U32, rows: Selection, where: npt.NDArray[np.bool_], number: int) -> None:
    """Set array[rows] to a number where a mask says so."""
    part = array[rows]
    np.copyto(part, np.uint32(number), where=where)
    if not isinstance(rows, slice):
        array[rows] = part


class PageHistory:
    """Counts for every page of one process that was ever dirty: 24 bytes a page, a row for each region.

    Rows are added as regions appear; the arrays grow by doubling.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint64)  # ascending
        self._rows = np.empty(0, np.int64)  # the row of each key
        self._used = 0
        self._arrays = {name: np.zeros((0, PAGES_PER_REGION), np.uint32) for name in _COUNTERS}

    def _rows_of(self, keys: U64) -> npt.NDArray[np.int64]:
        new = keys[~np.isin(keys, self._keys, assume_unique=True)]
        if len(new):
            need = self._used + len(new)
            capacity = len(self._arrays["dirty"])
            if need > capacity:
                grown = max(need, 2 * capacity)
                for name, old in self._arrays.items():
                    array = np.zeros((grown, PAGES_PER_REGION), np.uint32)
                    array[: self._used] = old[: self._used]
                    self._arrays[name] = array
            all_keys = np.concatenate((self._keys, new))
            all_rows = np.concatenate((self._rows, np.arange(self._used, need)))
            order = np.argsort(all_keys)
            self._keys, self._rows = all_keys[order], all_rows[order]
            self._used = need
        return self._rows[np.searchsorted(self._keys, keys)]

    def add(
        self,
        number: int,
        dirty: PageSet,
        redirtied: PageSet,
        logged: PageSet,
        fresh: PageSet | None = None,
    ) -> None:
        """Count the round of this number.

        fresh: the dirty pages that were not dirty in the previous round; None: all of them.
        """
        if len(dirty.keys) == 0:
            return
        rows = _selection(self._rows_of(dirty.keys))
        bits = matrix(dirty).view(np.bool_)
        a = self._arrays
        new = bits & (a["dirty"][rows] == 0)
        if new.any():
            _put(a["first"], rows, new, number)
        _put(a["last"], rows, bits, number)
        a["dirty"][rows] += bits
        for name, pages in (("redirtied", redirtied), ("faults", logged)):
            if len(pages.keys):
                a[name][_selection(self._rows_of(pages.keys))] += matrix(pages)

        fresh = dirty if fresh is None else fresh
        if len(fresh.keys):
            a["runs"][_selection(self._rows_of(fresh.keys))] += matrix(fresh)

    def table(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return columns over the pages ever dirty, ascending: page (number) and the counters."""
        chosen = self._arrays["dirty"][self._rows] != 0
        row, column = np.nonzero(chosen)
        pages = (self._keys[row] << np.uint64(9)) | column.astype(np.uint64)
        at = self._rows[row]
        return {"page": pages, **{n: self._arrays[n][at, column] for n in _COUNTERS}}


@dataclass(frozen=True, eq=False)
class Curve:
    """W(t), distinct pages written within t of an arm, averaged over rounds at least t long.

    elapsed_s, unique_dirty_pages: (n,) ascending.
    """

    elapsed_s: Floats
    unique_dirty_pages: Floats


class CurveSum:
    """Sum of one process's histograms of first-write times."""

    def __init__(self) -> None:
        self._edges_s = abi.hist_edges_ns() / 1e9
        self._sum = np.zeros(abi.HIST)
        self._rounds = np.zeros(abi.HIST)
        self._end_sum = 0.0
        self._end_rounds = 0
        self._longest_s = 0.0

    def add(self, hist: U64, duration_s: float, dirty_pages: int) -> None:
        """Add a round: pages by time slot since the arm, its length, and the number of dirty pages.

        Missed pages are assumed to have been written at the same times as the logged ones.
        """
        total = int(hist.sum())
        if total:
            cumulative = np.cumsum(hist.astype(np.float64)) * (dirty_pages / total)
        else:
            cumulative = np.where(self._edges_s >= duration_s, float(dirty_pages), 0.0)
        inside = self._edges_s <= duration_s
        self._sum[inside] += cumulative[inside]
        self._rounds[inside] += 1
        self._end_sum += dirty_pages
        self._end_rounds += 1
        self._longest_s += duration_s

    def curve(self) -> Curve:
        """Return the average; its last point is the mean round."""
        if self._end_rounds == 0:
            return Curve(np.empty(0), np.empty(0))
        mean_s = self._longest_s / self._end_rounds
        used = (self._rounds > 0) & (self._edges_s < mean_s)
        t = self._edges_s[used]
        w = self._sum[used] / self._rounds[used]
        first = int(np.argmax(w > 0)) if (w > 0).any() else len(w)
        end = self._end_sum / self._end_rounds
        # Rounds differ a little in length, so the mean at the end may be below that of the last slot.
        w = np.maximum.accumulate(np.minimum(w[first:], end)) if len(w[first:]) else w[first:]
        return Curve(np.append(t[first:], mean_s), np.append(w, end))


@dataclass(frozen=True)
class Rates:
    """Counts per second, over some rounds."""

    dirty_pages: float
    redirtied_pages: float
    new_pages: float
    write_faults: float


def rates(dirty: int, redirtied: int, write_faults: int, duration_s: float) -> Rates:
    """Return the rates of counts over a duration; all 0 when that is 0."""
    per = 1 / duration_s if duration_s > 0 else 0.0
    return Rates(dirty * per, redirtied * per, (dirty - redirtied) * per, write_faults * per)
