"""How much the loss rises when a part of a network is gone, as it is or after what little recovery brings back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploycompress.contracts import Batch, Model, Task, targets_are_classes
from deploycompress.errors import StageFailed
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.pruning.groups import ChannelGroup, Kept
from deploycompress.recovery.compensation import compensate
from deploycompress.recovery.evaluation import device_of, distance, mean_loss

STEPS = 20
RATES = (0.003, 0.01, 0.03)
MOMENTUM = 0.9
COMPENSATED = 4  # batches that weights are fitted to by least squares


class Rises:
    """Measures changed copies of ``module`` against a copy without a change, all of them alike.

    Batch statistics follow the change on the ``fitting`` batches; the ``judging`` ones tell how far the loss a
    sample rose. Batches without labels are held against what ``module`` answers. Raises StageFailed without a batch.
    """

    def __init__(
        self, module: nn.Module, fitting: Sequence[Batch], judging: Sequence[Batch], task: Task, model: Model
    ) -> None:
        device = device_of(module)
        self._module, self._task, self._model = module, task, model
        self._fitting = [batch.to(device) for batch in fitting]
        self._judging = judging
        self._unchanged = self._loss_of(copy.deepcopy(module), (), {})

    def of(self, changed: nn.Module, groups: Sequence[ChannelGroup] = (), kept: Kept | None = None) -> float:
        """For ``changed``, which ``groups`` were cut out of; this changes it further. It may be negative or not finite."""
        return self._loss_of(changed, groups, kept or {}) - self._unchanged

    def _loss_of(self, changed: nn.Module, groups: Sequence[ChannelGroup], kept: Kept) -> float:
        """After what is done to every copy."""
        self._settle(changed)
        return self._loss(changed)

    def _settle(self, changed: nn.Module) -> None:
        reestimate_batchnorm(changed, (batch.inputs for batch in self._fitting), self._model.call)

    def _loss(self, module: nn.Module) -> float:
        return mean_loss(module, self._judging, self._task, self._model.call, teacher=self._module)


class RecoveredRises(Rises):
    """As ``Rises``, after weights were fitted by least squares and trained for a few steps.

    Both go towards what ``module`` gives, on the ``fitting`` batches. Early layers get back within a few steps what
    the last ones do not, and the loss before any recovery knows nothing of it: half of MobileNetV1's first channels
    seem to cost nine tenths of what half of its last do, and afterwards six tenths.
    """

    def __init__(
        self, module: nn.Module, fitting: Sequence[Batch], judging: Sequence[Batch], task: Task, model: Model
    ) -> None:
        self._rate = 0.0
        super().__init__(module, fitting, judging, task, model)
        with torch.no_grad():  # kept on the host: a large output for every batch may be gigabytes
            self._wanted = [
                {name: answer.cpu() for name, answer in _floating(model.call(module, batch.inputs)).items()}
                for batch in self._fitting
            ]

    def find_rate(self, changed: nn.Module, groups: Sequence[ChannelGroup], kept: Kept) -> tuple[float, str]:
        """The learning rate after which ``changed``, which stays, has the smallest loss, from now on; 0: no training.

        And why a network was not trained at all, empty where it was.
        """
        losses: dict[float, float] = {}
        reason = ""
        for rate in (0.0, *RATES):
            self._rate = rate
            try:
                loss = self._loss_of(copy.deepcopy(changed), groups, kept)
            except (RuntimeError, ValueError) as error:
                # No gradient, or none of what the network does; or a batch of one sample normalised.
                if rate == 0 or isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = f"{type(error).__name__}: {error}"
                break
            losses[rate] = loss if math.isfinite(loss) else math.inf
        self._rate = min(losses, key=lambda rate: losses[rate])
        self._unchanged = self._loss_of(copy.deepcopy(self._module), (), {})
        return self._rate, reason

    def _loss_of(self, changed: nn.Module, groups: Sequence[ChannelGroup], kept: Kept) -> float:
        call = self._model.call
        if kept:
            with suppress(StageFailed):  # inputs that are not finite; the loss will not be either
                compensate(changed, self._module, groups, kept, self._fitting[:COMPENSATED], call)
        self._settle(changed)
        if self._rate:
            classes = targets_are_classes(self._task)
            train_towards(changed, self._fitting, self._wanted, call, self._rate, classes)
            self._settle(changed)
        return self._loss(changed)


def train_towards(
    module: nn.Module,
    batches: Sequence[Batch],
    wanted: Sequence[Mapping[str, Tensor]],
    call: Callable[..., Any],
    rate: float,
    classes: bool,
    steps: int = STEPS,
) -> None:
    """Train ``module`` in place, for ``steps``, to answer to each of ``batches`` what is ``wanted`` of it.

    ``classes``: whether [n, m] are classes, as ``distance`` asks.
    By stochastic gradients with momentum; ``rate`` falls to zero by a straight line. Batch normalisation works with
    the statistics of each batch; all else is in evaluation mode, and so is everything afterwards.
    """
    module.eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.train()
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    optimizer = torch.optim.SGD(parameters, rate, MOMENTUM, nesterov=True)
    pairs = islice(cycle(zip(batches, wanted, strict=True)), steps)
    with torch.enable_grad():
        for step, (batch, answers) in enumerate(pairs):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / steps)
            given = _floating(call(module, batch.inputs))
            optimizer.zero_grad()
            distances = [
                distance(given[name], answer.to(given[name].device), classes)
                for name, answer in answers.items()
            ]
            torch.autograd.backward(torch.stack(distances).sum())
            optimizer.step()
    module.eval()


def _floating(answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: answer for name, answer in answers.items() if answer.is_floating_point()}
