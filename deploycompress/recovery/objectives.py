"""What a training step minimises: the task's own loss, or a distillation loss with a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Loss, Model, Outputs, Task

Terms = Mapping[str, Tensor]  # the summands of the loss, scalars by name


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
    """A distillation loss between the student and a teacher that see the same augmented batch.

    The same view for both: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent".
    """

    def __init__(self, model: Model, task: Task, teacher: nn.Module, loss: Loss) -> None:
        self._model, self._task, self._teacher, self._loss = model, task, teacher.eval(), loss

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        with torch.inference_mode():
            seen = self._model.call(self._teacher, batch.inputs)
        # Autograd may keep these for its backward, which it refuses to do with inference tensors.
        teacher = Outputs({name: tensor.clone() for name, tensor in seen.items()})
        outputs = Outputs(self._model.call(student, batch.inputs))
        if batch.targets is not None:
            self._task.check(outputs, batch)
        if hasattr(self._loss, "terms"):
            terms: Terms = self._loss.terms(outputs, teacher, batch)
            return terms
        return {"loss": self._loss(outputs, teacher, batch)}
