"""Base of the readers of one target: a question to the model, and snapshots of a history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from redirty.collector.model.observations import Observations
from redirty.tui.readers.base import Reader, error_text
from redirty.tui.readers.model_schedule import ModelSchedule
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import History
from redirty.tui.snapshots.snapshot import ReaderState, TargetInfo, TargetSnapshot


class TargetReader(Reader[TargetSnapshot]):
    """Publishes snapshots of one target.

    Attributes:
        question: question to the model; set with ask(), answered with the next snapshot.
        about: description of the target and of how it is traced.
        model: schedule of the model's runs.
        changed: something has changed since the last snapshot, so that a new one is due.
    """

    def __init__(self, question: ConvergenceQuestion) -> None:
        super().__init__()
        self.question = question
        self.about = TargetInfo("")
        self.model = ModelSchedule()
        self.changed = False

    def ask(self, question: ConvergenceQuestion) -> None:
        """Change bandwidth, downtime or policy; a snapshot with the answer follows at once."""
        with self._wake:
            self.question = question
            self._changed()

    def _changed(self) -> None:
        """Request a new snapshot. The caller holds the lock."""
        self.changed = True
        self._wake.notify_all()

    def failed(self, error: Exception) -> None:
        """See Reader. The latest values stay on the screen."""
        self.publish(self.repeat(ReaderState.FAILED, error_text(error)))

    def repeat(self, state: ReaderState, message: str) -> TargetSnapshot:
        """Return the latest snapshot with another state and message."""
        old = self.latest
        if old is None:
            return self.snapshot(History(), state, message)
        return replace(old, number=self.next_number(), state=state, message=message)

    def common(self, history: History, state: ReaderState, message: str = "") -> TargetSnapshot:
        """Return a snapshot with the values that every reader has, without a prediction."""
        return TargetSnapshot(
            number=self.next_number(),
            state=state,
            about=self.about,
            message=message,
            series=history.series(),
            mappings=history.mappings(),
            heat=history.heat(),
            tlb=history.tlb(),
        )

    def snapshot(
        self,
        history: History,
        state: ReaderState,
        message: str = "",
        *,
        force: bool = True,
        observe: Callable[[], Observations | None] | None = None,
    ) -> TargetSnapshot:
        """Return a snapshot with a prediction.

        Args:
            history: the latest rounds.
            state: of the reader.
            message: what happened.
            force: run the model even if it is not due, and whatever it said before.
            observe: returns the model's input; None: that of the history.
        """
        common = self.common(history, state, message)
        found = self.model.answer(
            observe or history.observed, common.mappings, self.question, force=force
        )
        return replace(common, convergence=found)
