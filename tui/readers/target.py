"""What readers of one target have in common: a history, a question, snapshots of both."""

from __future__ import annotations

from dataclasses import replace

from redirty.tui.readers.base import Reader
from redirty.tui.readers.model_schedule import ModelSchedule
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import History
from redirty.tui.snapshots.snapshot import ReaderState, TargetInfo, TargetSnapshot


class TargetReader(Reader[TargetSnapshot]):
    """asked: of the model, by the screen; answered with the next snapshot, which comes at once."""

    def __init__(self, asked: ConvergenceQuestion) -> None:
        super().__init__()
        self.asked = asked
        self.about = TargetInfo("")
        self.model = ModelSchedule()
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
        return replace(old, number=self.next_number(), state=state, message=message)

    def common(self, history: History, state: ReaderState, message: str = "") -> TargetSnapshot:
        """Return a snapshot of what every reader knows, without a prediction."""
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
        self, history: History, state: ReaderState, message: str = "", *, force: bool = True
    ) -> TargetSnapshot:
        """Return a snapshot with a prediction. force: run the model even if it is not due."""
        common = self.common(history, state, message)
        found = self.model.answer(history, common.mappings, self.asked, force=force)
        return replace(common, convergence=found)
