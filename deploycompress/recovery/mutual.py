"""Mutual learning: student and teacher are trained together."""

from __future__ import annotations

from torch import nn

from deploycompress.contracts import Batch, Loss, Model, Outputs, Task
from deploycompress.errors import ConfigError
from deploycompress.recovery.fitting import require_teaching
from deploycompress.recovery.losses.weighted import reads_features
from deploycompress.recovery.mixture import Share, Terms, mixed_terms, require_labels, tell, trial, tried


class MutualLearning:
    """Each of the two learns from the labels and from what the other answers.

    ``alpha * L(s, t') + (1 - alpha) * L_task(s) + alpha * L(t, s') + (1 - alpha) * L_task(t)``, where a prime takes
    no gradient: Zhang et al., "Deep Mutual Learning" (CVPR 2018), equations 5 and 6, with both updated in one step.
    Raises ConfigError for a loss that reads features: its layers lead from one network to the other only.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        teacher: nn.Module,
        loss: Loss,
        alpha: float = 0.9,
        final_alpha: float | None = None,
    ) -> None:
        if reads_features(loss):
            raise ConfigError(
                "distill.joint: the loss reads features, which lead from the teacher to the student only; choose a loss "
                "on outputs, such as kd"
            )
        self._model, self._task, self._loss, self.trainable = model, task, loss, teacher
        self._alpha = Share(alpha, alpha if final_alpha is None else final_alpha)

    def prepare(self, student: nn.Module, batch: Batch) -> None:
        """As for ``Distillation``."""
        if self._alpha.teaches:
            require_teaching(self._loss, self._task)
        with trial(student), trial(self.trainable):
            tried("teacher", batch, lambda: self._model.call(self.trainable, batch.inputs))
            tried("student", batch, lambda: self._model.call(student, batch.inputs))
            self(student, batch)
        require_labels(self._alpha, batch)

    def progress(self, done: float) -> None:
        self._alpha.progress(done)
        tell(self._loss, done)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        self.trainable.train(student.training)
        pair = [Outputs(self._model.call(net, batch.inputs)) for net in (student, self.trainable)]
        for outputs in pair:
            self._task.check(outputs, batch)
        s, t = pair
        taught = mixed_terms(self._loss, self._task, self._alpha, t, _detached(s), batch)
        return {
            **mixed_terms(self._loss, self._task, self._alpha, s, _detached(t), batch),
            **{f"teacher_{name}": term for name, term in taught.items()},
        }


def _detached(outputs: Outputs) -> Outputs:
    return Outputs({name: tensor.detach() for name, tensor in outputs.tensors.items()})
