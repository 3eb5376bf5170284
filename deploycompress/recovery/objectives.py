"""What a training step minimises: the task's own loss, or a distillation loss with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from deploycompress.contracts import Batch, Loss, Model, Outputs, Task
from deploycompress.recovery.fitting import require_no_labels, require_teaching
from deploycompress.recovery.layers import Pair, trace, watched
from deploycompress.recovery.losses.weighted import reads_features
from deploycompress.recovery.mixture import Share, Terms, mixed_terms, require_labels, tell, trial, tried
from deploycompress.recovery.mixup import Blender
from deploycompress.recovery.teachers import NetworkTeacher, Teacher

__all__ = ["Distillation", "Objective", "Supervised", "Terms"]


class Objective(Protocol):
    """What is summed up to be minimised. Three attributes are optional, and looked for by the loop.

    ``trainable``: a module that is trained and kept with the student. ``progress(done)``: told before each step
    which share of all steps is done. ``state()``, ``restore(state)``: plain numbers that a checkpoint keeps.
    """

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        """Raises ConfigError when the batch, or what the networks make of it, does not fit."""
        ...


class Supervised:
    """The task's loss on the labels."""

    def __init__(self, model: Model, task: Task) -> None:
        self._model, self._task = model, task

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        outputs = Outputs(self._model.call(student, batch.inputs))
        self._task.check(outputs, batch)
        return {"loss": self._task.loss(outputs, batch)}


class Distillation:
    """``alpha * L(student, teacher) + (1 - alpha) * L_task(student, labels)``, on one augmented batch for both.

    With soft labels this is the objective of Hinton et al. (2015), section 2; the same view for both: Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent". With ``alpha`` 1 labels are not needed. A loss
    that reads features needs ``prepare`` before the first call. ``mixup``: alpha of what both are shown blends by, as in
    the second of these; the labels' part is then that of ``recovery.mixup``.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        teacher: nn.Module | Teacher,
        loss: Loss,
        alpha: float = 0.9,
        final_alpha: float | None = None,
        mixup: float | None = None,
    ) -> None:
        self._model, self._task, self._loss = model, task, loss
        self._blend = None if mixup is None else Blender(mixup)
        if mixup is not None:
            require_no_labels(loss)
        self._teacher = NetworkTeacher(model, teacher) if isinstance(teacher, nn.Module) else teacher
        self._alpha = Share(alpha, alpha if final_alpha is None else final_alpha)
        self.pairs: Sequence[Pair] = ()  # layers whose features are read
        self.trainable: nn.Module | None = None

    def prepare(self, student: nn.Module, batch: Batch) -> None:
        """Try a first batch before anything is trained; losses that read features choose their layers on it.

        Raises ConfigError when outputs, labels or layers do not fit. Changes no weight and no statistics.
        """
        if self._alpha.teaches:
            require_teaching(self._loss, self._task)
        with trial(student):
            tried("teacher", batch, lambda: self._teacher.answer(batch, ()))
            tried("student", batch, lambda: self._model.call(student, batch.inputs))
            if reads_features(self._loss):
                self._attach(student, batch)
            self(student, batch)
        require_labels(self._alpha, batch)

    def progress(self, done: float) -> None:
        self._alpha.progress(done)
        tell(self._loss, done)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        batch, other, share = (batch, None, 1.0) if self._blend is None else self._blend(batch)
        asked = self._alpha.now > 0
        teacher = self._teacher.answer(batch, [pair.teacher for pair in self.pairs]) if asked else Outputs({})
        with watched(student, [pair.student for pair in self.pairs]) as features:
            tensors = self._model.call(student, batch.inputs)
        outputs = Outputs(tensors, features)
        if batch.targets is not None:
            self._task.check(outputs, batch)
        terms = dict(mixed_terms(self._loss, self._task, self._alpha, outputs, teacher, batch))
        if other is not None and "task" in terms:
            terms["task"] = share * terms["task"]
            terms["mixed"] = (1 - share) * (1 - self._alpha.now) * self._task.loss(outputs, other)
        return terms

    def _attach(self, student: nn.Module, batch: Batch) -> None:
        """Show the layers of both networks to the loss."""
        loss: Any = self._loss
        own = trace(student, lambda: self._model.call(student, batch.inputs))
        self.pairs = tuple(loss.attach(own, self._teacher.layers(batch)))
        self.trainable = getattr(loss, "trainable", None)
        if self.trainable is not None:
            self.trainable.to(next(iter(batch.inputs.values())).device)
