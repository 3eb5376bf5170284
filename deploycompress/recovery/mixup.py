"""Mixup: a network learns from blends of two samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Outputs, Task
from deploycompress.errors import ConfigError
from deploycompress.recovery.mixture import Terms


class Blender:
    """Blends the samples of a batch with those of another order of it, by a share from Beta(alpha, alpha), one a batch.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", equation 1. Raises ConfigError for inputs that cannot be
    blended, and for targets that cannot be put in another order.
    """

    def __init__(self, alpha: float) -> None:
        self._beta = torch.distributions.Beta(alpha, alpha)

    def __call__(self, batch: Batch) -> tuple[Batch, Batch, float]:
        """The blended samples with their own targets, the same with those of what was blended in, and the first's share.

        Without targets there are none in either.
        """
        if batch.targets is not None and not isinstance(batch.targets, Tensor):
            raise ConfigError(
                f"mixup: received labels of type {type(batch.targets).__name__}; expected one tensor with a target for "
                "each sample: leave mixup out"
            )
        share = float(self._beta.sample())
        order = torch.randperm(batch.size, device="cpu")
        inputs = mixed(batch, share, order)
        own: Tensor | None = batch.targets
        other = None if own is None else own[order.to(own.device)]
        return Batch(inputs, own, batch.size), Batch(inputs, other, batch.size), share


class MixedUp:
    """``l L(f(l x + (1 - l) x'), y) + (1 - l) L(f(...), y')``: mixup in the form that needs no mixed labels."""

    def __init__(self, model: Model, task: Task, alpha: float) -> None:
        self._model, self._task = model, task
        self._blend = Blender(alpha)

    def __call__(self, student: nn.Module, batch: Batch) -> Terms:
        if batch.targets is None:
            raise ConfigError("mixup: received no labels; expected one tensor with a target for each sample")
        own, other, share = self._blend(batch)
        outputs = Outputs(self._model.call(student, own.inputs))
        self._task.check(outputs, own)
        return {
            "loss": share * self._task.loss(outputs, own),
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
