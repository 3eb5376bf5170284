"""When a training is kept, and how it goes on: after an interruption, and after a divergence."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass, field

from deploycompress.contracts import Event, RunContext
from deploycompress.errors import Interrupted
from deploycompress.recovery.checkpoints import Checkpoint, Checkpoints
from deploycompress.recovery.processes import Processes
from deploycompress.recovery.recipe import Recipe
from deploycompress.recovery.state import Training
from deploycompress.recovery.stepping import Diverged

ROLL_BACKS = 3


@dataclass
class Keeping:
    """Keeps ``training`` in the folder of its step; does nothing where the run has none."""

    training: Training
    processes: Processes
    recipe: Recipe
    context: RunContext
    last: Checkpoints  # to go on from
    starts: Checkpoints  # of the epoch that runs: where it is rolled back to does not depend on any clock
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls, training: Training, processes: Processes, recipe: Recipe, context: RunContext, name: str
    ) -> Keeping:
        """``name``: of this training among those of its step."""
        kept = bool(context.step) and not context.rehearsal
        place = context.store.checkpoints(context.step) / name if kept else None

        def warn(text: str) -> None:
            context.emit(Event("warning", text))

        training_name = f"{context.step}/{name}"
        last = Checkpoints(place and place / "last", warn, processes.writes, training_name)
        rolls = recipe.on_divergence == "roll_back"
        starts = Checkpoints(
            place / "epoch" if place and rolls else None, warn, processes.writes, training_name
        )
        return cls(training, processes, recipe, context, last, starts)

    # ------------------------------------------------------------ keeping

    def due(self) -> bool:
        """Whether a checkpoint is to be made after the step that now begins."""
        every = self.recipe.checkpoint_every
        if every.dimension == "steps":
            return (self.training.done + 1) % math.ceil(every.value) == 0
        return time.monotonic() - self.saved >= every.value / 1000

    def save(self) -> None:
        self._save(self.last)
        self.saved = time.monotonic()

    def begin_epoch(self) -> None:
        self._save(self.starts)

    def leave(self) -> None:
        """Raises Interrupted, after a checkpoint."""
        self.save()
        raise Interrupted(signal.SIGTERM)

    def leave_when_stopping(self) -> None:
        if self.context.stopping():
            self.leave()

    def seconds(self) -> float:
        """Spent on this training, in every run that did a part of it."""
        return self.training.progress.seconds + time.monotonic() - self.began

    def _save(self, place: Checkpoints) -> None:
        if place:
            numbers = self.training.numbers()
            numbers["progress"]["seconds"] = self.seconds()
            place.save(Checkpoint(self.training.done, self.training.tensors(), numbers))

    # ------------------------------------------------------------ going on

    def resume(self) -> None:
        """From the latest step of which every machine has an undamaged checkpoint; else from the beginning."""
        found = self.last.steps()
        step = self.processes.lowest(found[0] if found else -1)
        if step < 0:
            return
        checkpoint = self.last.load(step)
        if not self.processes.lowest(int(checkpoint is not None)) or checkpoint is None:
            return
        self.training.restore(checkpoint.tensors, checkpoint.state)
        self.starts.forget_after(step)  # of a training that was killed, and had got further than it had kept
        steps = self.training.per_epoch * self.recipe.epochs
        self.context.emit(Event("decision", f"training goes on after step {step} of {steps}"))

    def roll_back(self, error: Diverged) -> None:
        """To the beginning of the epoch, with half the rate. Raises ``error`` where that cannot be."""
        start, progress = self.starts.newest(), self.training.progress
        if start is None or progress.rolled_back >= ROLL_BACKS:
            raise error
        factor, times, spent = progress.factor / 2, progress.rolled_back + 1, self.seconds()
        self.training.restore(start.tensors, start.state)
        self.training.progress.factor, self.training.progress.rolled_back = factor, times
        self.training.progress.seconds, self.began = spent, time.monotonic()
        self.last.forget_after(start.step)
        self.processes.lowest(0)  # the first one writes here next, and all others have read
        message = f"{error}; back to the beginning of the epoch with {factor:g} of the rate"
        self.context.emit(Event("warning", message))
