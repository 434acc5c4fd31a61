"""What readers of one target have in common: a history, a question, snapshots of both."""

from __future__ import annotations

import time
from dataclasses import replace

from redirty.collector.model.observations import Layout
from redirty.tui.readers.base import Reader
from redirty.tui.snapshots.convergence import Convergence, ConvergenceQuestion, convergence
from redirty.tui.snapshots.cost import Cost
from redirty.tui.snapshots.history import History, MappingTable
from redirty.tui.snapshots.page_tables import PageTables
from redirty.tui.snapshots.snapshot import Playback, ReaderState, TargetInfo, TargetSnapshot

_MODEL_SHARE = 0.01  # of a CPU, that the model may use while rounds go by


class TargetReader(Reader[TargetSnapshot]):
    """asked: of the model, by the screen; answered with the next snapshot, which comes at once."""

    def __init__(self, asked: ConvergenceQuestion) -> None:
        super().__init__()
        self.asked = asked
        self.about = TargetInfo("")
        self.layout: Layout | None = None  # of the target's memory, where zero pages were counted
        self._answer: Convergence | None = None
        self._answer_due = 0.0
        self.changed = False  # since the last snapshot: what was asked, or where a replay is

    def ask(self, asked: ConvergenceQuestion) -> None:
        """Another bandwidth, downtime or policy."""
        with self._wake:
            self.asked = asked
            self._changed()

    def _changed(self) -> None:
        """With the lock held: a new snapshot is wanted."""
        self.changed = True
        self._wake.notify_all()

    def failed(self, error: Exception) -> None:
        """See Reader. What was shown last is shown on."""
        text = str(error) or type(error).__name__
        known = getattr(error, "exit_code", None) is not None
        message = text if known else f"internal error: {type(error).__name__}: {text}"
        self.publish(self.again(ReaderState.FAILED, message))

    def again(self, state: ReaderState, message: str) -> TargetSnapshot:
        """The latest snapshot in another state."""
        old = self.latest
        if old is None:
            return self.snapshot(History(), state, message)
        return TargetSnapshot(
            **{**vars(old), "number": self.next_number(), "state": state, "message": message}
        )

    def _answered(
        self, history: History, mappings: MappingTable, first: int, *, fresh: bool
    ) -> Convergence | None:
        old = self._answer
        same = old is not None and old.asked == self.asked
        if not fresh and same and time.monotonic() < self._answer_due:
            return old
        seen = history.observed(first)
        if seen is None:
            return None
        begun = time.thread_time()
        self._answer = convergence(replace(seen, layout=self.layout), self.asked, mappings)
        took = time.thread_time() - begun
        self._answer_due = time.monotonic() + took / _MODEL_SHARE
        return self._answer

    def snapshot(
        self,
        history: History,
        state: ReaderState,
        message: str = "",
        *,
        cost: Cost | None = None,
        tables: PageTables | None = None,
        playback: Playback | None = None,
        writers: bool = False,
        heat_estimated: bool = False,
        note: str = "",
        model_from: int = 0,
        fresh: bool = True,
        model: bool = True,
    ) -> TargetSnapshot:
        """Of what is known. model_from: the first round that the model may go by. fresh: the model is
        asked anew; else only as often as it may use the CPU, and when something else is asked. model:
        whether it is asked at all."""
        mappings = history.mappings()
        found = self._answered(history, mappings, model_from, fresh=fresh) if model else None
        return TargetSnapshot(
            number=self.next_number(),
            state=state,
            about=self.about,
            message=message,
            series=history.series(),
            mappings=mappings,
            heat=history.heat(),
            tlb=history.tlb(),
            writers=history.writers() if writers else None,
            convergence=found,
            cost=cost,
            tables=tables,
            playback=playback,
            heat_estimated=heat_estimated,
            note=note,
        )
