"""The training loop, on Accelerate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from deploycompress.contracts import Event, RunContext
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.model.architecture import named_tensors
from deploycompress.model.sparse import zero_masks
from deploycompress.model.weights import first_nonfinite
from deploycompress.recovery.average import Average
from deploycompress.recovery.determinism import deterministic
from deploycompress.recovery.evaluation import evaluate, primary_of
from deploycompress.recovery.feeding import counted, cut_short, groups, until_stopped
from deploycompress.recovery.keeping import Keeping
from deploycompress.recovery.objectives import Objective
from deploycompress.recovery.optimization import make_optimizer, only, training_mode
from deploycompress.recovery.pace import Pace
from deploycompress.recovery.probing import find_rate
from deploycompress.recovery.processes import Processes, device, float32_outputs
from deploycompress.recovery.recipe import Recipe, learning_rate
from deploycompress.recovery.state import History, Progress, Training
from deploycompress.recovery.stepping import Diverged, Penalty, Stepper
from deploycompress.recovery.tracking import Tracking

__all__ = ["History", "device", "fit", "require_finite"]


def fit(
    student: nn.Module,
    objective: Objective,
    recipe: Recipe,
    context: RunContext,
    after_epoch: Callable[[int], None] | None = None,
    penalty: Penalty | None = None,
    name: str = "training",
) -> History:
    """Train ``student`` in place by ``recipe``; the figures of every epoch. It is left on the training device.

    The zeros of weights that are marked as sparse stay zero. A rehearsal goes forward and backward through one
    batch and changes no weight. ``objective`` may have a ``trainable`` module, which is trained with the student;
    ``progress(done)``, which is told before each step which share of all is done; and ``state()`` with
    ``restore(state)``, plain numbers for a checkpoint, as ``penalty`` may: that gives further summands of the loss
    once a step. ``after_epoch`` is given how many epochs are done, and may change weights in place before the
    epoch's figures are taken; and once more, with all of them, on the network that is delivered. ``name``: of this
    training among those of its step.

    What is unfinished is kept in ``context.store.checkpoints(context.step)``, and goes on from there to the same
    weights, bit by bit, on a CPU. Raises StageFailed when a loss, a gradient or a weight is not finite, when the
    loss explodes and when memory runs out; Interrupted when the run is stopping, after a checkpoint; ConfigError
    when the data do not fit.
    """
    with ExitStack() as stack:
        stack.enter_context(deterministic(context.seed))
        stack.enter_context(only(student, recipe.trainable))
        loop = _Loop.open(student, objective, recipe, context, after_epoch, penalty, name)
        stack.callback(loop.tracking.close)
        stack.enter_context(float32_outputs(student, recipe))
        history = loop.rehearse() if context.rehearsal else loop.run()
    student.eval()
    require_finite(student)
    return history


def require_finite(net: nn.Module) -> None:
    """Raises StageFailed naming the first parameter or buffer that holds NaN or Inf."""
    if bad := first_nonfinite((name, tensor) for name, tensor, _ in named_tensors(net)):
        raise StageFailed(f"after training, {bad}: nothing was saved; use a lower lr, or set clip: 1.0")


@dataclass
class _Loop:
    training: Training
    stepper: Stepper
    processes: Processes
    recipe: Recipe
    context: RunContext
    after_epoch: Callable[[int], None] | None
    keeping: Keeping
    tracking: Tracking
    pace: Pace
    batches: int  # of an epoch

    @classmethod
    def open(
        cls,
        student: nn.Module,
        objective: Objective,
        recipe: Recipe,
        context: RunContext,
        after_epoch: Callable[[int], None] | None,
        penalty: Penalty | None,
        name: str,
    ) -> _Loop:
        batches = counted(context.data.loader("train", epoch=0), "train")
        processes = Processes(recipe)
        if processes.slowed is not None:
            context.emit(Event("warning", processes.slowed))
        beside = getattr(objective, "trainable", None)
        modules = [module.to(processes.device) for module in (student, beside) if module is not None]
        for module in modules:
            processes.spread(module)
        rate = 0.0 if recipe.lr == "auto" else recipe.lr
        training = Training(
            student,
            beside,
            make_optimizer(modules, recipe, rate or 1e-3),
            None if recipe.ema is None else Average(student, recipe.ema),
            processes.scaler,
            {"objective": objective, "penalty": penalty},
            math.ceil(batches / recipe.accumulate),
            progress=Progress(peak=rate),
        )
        stepper = Stepper(training, objective, penalty, recipe, processes, zero_masks(student), context.seed)
        return cls(
            training,
            stepper,
            processes,
            recipe,
            context,
            after_epoch,
            Keeping.open(training, processes, recipe, context, name),
            Tracking(recipe, processes, context.emit, context.rehearsal),
            Pace(context.emit),
            batches,
        )

    @property
    def progress(self) -> Progress:
        return self.training.progress

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.training.per_epoch * self.recipe.epochs

    # ------------------------------------------------------------ the whole of it

    def rehearse(self) -> History:
        batch = next(iter(self.context.data.loader("train", epoch=0)))
        training_mode(self.training, self.recipe.trainable)
        self.stepper.rehearse(batch)
        return []

    def run(self) -> History:
        """Every epoch that is not done yet; the network that was to be kept is in the one that was given."""
        self.keeping.resume()
        if not self.training.done and self.processes.rank == 0:
            self._check_validation()
        if not self.progress.peak:
            self._probe()
        patience = self.recipe.patience or self.recipe.epochs
        while self.progress.epoch < self.recipe.epochs:
            if self.progress.epoch - self.progress.best_epoch >= patience:
                self.context.emit(Event("decision", f"stopped early: no better for {patience} epochs"))
                break
            try:
                self._epoch()
            except Diverged as error:
                self.keeping.roll_back(error)
        self.keeping.save()
        if self.recipe.keep == "best":
            self.training.put_best()
        self.training.settle()
        if self.after_epoch is not None:  # an average, or an earlier epoch, has not been through it
            self.after_epoch(self.recipe.epochs)
        self.processes.spread(self.training.net)  # batch statistics are each process's own
        return self.progress.history

    def _epoch(self) -> None:
        """One pass over train, then the validation figures; says how it went."""
        progress, recipe = self.progress, self.recipe
        if progress.index == 0:
            self.keeping.begin_epoch()
        training_mode(self.training, recipe.trainable)
        loader = self.context.data.loader("train", epoch=progress.epoch)
        elsewhere = self.processes.device.type != "cpu"  # which computes while this processor reads
        read = groups(
            loader, recipe.accumulate, progress.index, self.training.per_epoch, self.processes.cut, elsewhere
        )
        for group in self.pace.epoch(read):
            stop = self.context.stopping()
            if stop and self.processes.count == 1:
                self.keeping.leave()
            rate = learning_rate(recipe, self.training.done, self.steps, progress.peak) * progress.factor
            votes = (stop, self.keeping.due())
            loss, said = self.stepper.take(
                group, self.training.done, self.steps, rate, self._where(rate), votes
            )
            samples = sum(share.size for share in group)
            if not self.training.done:
                self._tell_of_idle_ones(group[0].size)
            progress.samples, progress.loss = progress.samples + samples, progress.loss + loss * samples
            progress.index += 1
            if self.training.average is not None:
                self.training.average.update(self.training.net, self.training.done)
            self.tracking.step({"loss": loss, "lr": rate}, self.training.done)
            read_batches = min(progress.index * recipe.accumulate, self.batches)
            place = f"epoch {progress.epoch + 1}/{recipe.epochs}, batch {read_batches}/{self.batches}"
            self.pace.step(place, samples, self.training.done / self.steps, {"loss": loss, "lr": rate})
            if said[0]:
                self.keeping.leave()
            if said[1]:
                self.keeping.save()
        if self.after_epoch is not None and not progress.shaped:
            self.after_epoch(progress.epoch + 1)
        progress.shaped = True
        self._finish_epoch()

    def _tell_of_idle_ones(self, size: int) -> None:
        """A batch of ``size`` samples may have too few for all processes."""
        count = self.processes.count
        if count > 1 and size < 2 * count:
            message = (
                f"a batch of {size} samples keeps {min(count, max(1, size // 2))} of {count} processes busy, since each "
                f"takes two at least; set data.batch_size to {2 * count} or more"
            )
            self.context.emit(Event("warning", message))

    def _where(self, rate: float) -> str:
        first = self.progress.index * self.recipe.accumulate + 1
        last = min(first + self.recipe.accumulate - 1, self.batches)
        which = f"batch {first}" if first == last else f"batches {first} to {last}"
        return f"epoch {self.progress.epoch + 1}, {which} of {self.batches}, lr {rate:.3g}"

    def _finish_epoch(self) -> None:
        context, progress, primary = self.context, self.progress, self.context.task.primary
        val, several = context.data.loader("val"), self.processes.count > 1
        read = (
            cut_short(val, context.stopping)
            if several
            else until_stopped(val, self.keeping.leave_when_stopping)
        )
        value = 0.0
        if self.processes.rank == 0:  # the others take its figure, and need not read the split as well
            figures, _ = evaluate(self.training.shown, context.model, read, context.task)
        # One that left alone would leave the others waiting, and nothing kept.
        if several and not self.processes.lowest(int(not context.stopping())):
            self.keeping.leave()
        if not progress.samples:
            raise ConfigError("data, split train: an epoch gave no batch, though the loader has a length")
        if self.processes.rank == 0:
            value = primary_of(figures, context.task, "val")
        (value,) = self.processes.agree([value])
        record = {"loss": progress.loss / progress.samples, f"val_{primary.name}": value}
        if progress.best is None or (
            value > progress.best if primary.higher_is_better else value < progress.best
        ):
            progress.best, progress.best_epoch = value, progress.epoch + 1
            if self.recipe.keep == "best":
                self.training.keep_best()
        progress.epoch += 1
        progress.index, progress.samples, progress.loss, progress.shaped = 0, 0, 0.0, False
        told = {"rolled_back": float(progress.rolled_back), "pieces": float(progress.pieces - 1)}
        more = {name: number for name, number in told.items() if number}
        progress.history.append({"epoch": float(progress.epoch)} | record | more)
        share = progress.epoch / self.recipe.epochs
        left = round(self.keeping.seconds() * (1 / share - 1), 1)
        message = f"epoch {progress.epoch}/{self.recipe.epochs}"
        context.emit(Event("progress", message, record | {"seconds_left": left}, share))
        self.tracking.epoch(record, self.training.done)

    # ------------------------------------------------------------ before the first step

    def _check_validation(self) -> None:
        """A first batch of the validation split, so that what is wrong with it costs no epoch."""
        loader = self.context.data.loader("val")
        counted(loader, "val")
        evaluate(self.training.net, self.context.model, itertools.islice(loader, 1), self.context.task)

    def _probe(self) -> None:
        training_mode(self.training, self.recipe.trainable)
        context = self.context
        peak = find_rate(
            self.stepper, lambda: context.data.loader("train", epoch=0), self.steps, context.stopping
        )
        self.progress.peak = peak
        self.context.emit(Event("decision", "learning rate found by a probe", {"lr": peak}))
