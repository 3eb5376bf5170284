"""Mixup: a network learns from blends of two samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Outputs, Task
from deploycompress.errors import ConfigError
from deploycompress.recovery.objectives import Terms


class MixedUp:
    """``l L(f(l x + (1 - l) x'), y) + (1 - l) L(f(...), y')``, with ``l`` from Beta(alpha, alpha), one a batch.

    ``x'``, ``y'``: the same batch in another order. Zhang et al., "mixup: Beyond Empirical Risk Minimization",
    equation 2, in the form that needs no mixed labels. Raises ConfigError for inputs that cannot be blended.
    """

    def __init__(self, model: Model, task: Task, alpha: float) -> None:
        self._model, self._task = model, task
        self._beta = torch.distributions.Beta(alpha, alpha)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        if not isinstance(batch.targets, Tensor):
            raise ConfigError(
                f"mixup: received {_told(batch.targets)}; expected one tensor with a target for each sample: leave "
                "mixup out"
            )
        share = float(self._beta.sample())
        order = torch.randperm(batch.size, device="cpu")
        outputs = Outputs(self._model.call(student, mixed(batch, share, order)))
        self._task.check(outputs, batch)
        other = Batch(batch.inputs, batch.targets[order.to(batch.targets.device)], batch.size)
        return {
            "loss": share * self._task.loss(outputs, batch),
            "mixed": (1 - share) * self._task.loss(outputs, other),
        }


def mixed(batch: Batch, share: float, order: Tensor) -> dict[str, Tensor]:
    """``share`` of every sample and the rest of the one that ``order`` ([batch] positions) puts in its place."""
    whole = [name for name, value in batch.inputs.items() if not value.is_floating_point()]
    if whole:
        raise ConfigError(
            f"mixup: input {whole[0]!r} holds {batch.inputs[whole[0]].dtype}, which cannot be blended: "
            "leave mixup out"
        )
    return {
        name: value.lerp(value[order.to(value.device)], 1 - share) for name, value in batch.inputs.items()
    }


def _told(targets: object) -> str:
    return "no labels" if targets is None else f"labels of type {type(targets).__name__}"
