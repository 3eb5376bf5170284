"""A network's figures on one split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Outputs, Task
from deploycompress.errors import ConfigError, StageFailed


def evaluate(
    module: nn.Module, model: Model, loader: Iterable[Batch], task: Task
) -> tuple[dict[str, float], np.ndarray | None]:
    """The task's metrics, and a score for every sample where the task has one; in evaluation mode.

    Raises StageFailed when an output is not finite, ConfigError when outputs and labels do not fit the task.
    """
    device = device_of(module)
    training = module.training
    module.eval()
    metrics = task.metrics()
    try:
        with torch.inference_mode():
            for number, batch in enumerate(loader):
                moved = batch.to(device)
                outputs = Outputs(model.call(module, moved.inputs))
                if bad := [
                    k for k, v in outputs.tensors.items() if v.is_floating_point() and not v.isfinite().all()
                ]:
                    raise StageFailed(
                        f"evaluation, batch {number}: NaN or Inf in the model's output {bad[0]!r}, from inputs without: "
                        "the weights, or what was done to them, are not sound; train with a lower lr"
                    )
                task.check(outputs, moved)
                metrics.update(outputs, moved)
    finally:
        module.train(training)
    return metrics.compute(), metrics.scores()


def primary_of(figures: Mapping[str, float], task: Task, split: str) -> float:
    """The primary metric among ``figures``. Raises ConfigError where the split does not define it."""
    name = task.primary.name
    if name not in figures:
        raise ConfigError(
            f"the metric {name} is not defined on the {split} split: received {', '.join(figures) or 'no figure'} from "
            "it; expected samples of every kind that it needs, or another metric in task.args"
        )
    return figures[name]


def mean_loss(
    module: nn.Module,
    batches: Iterable[Batch],
    task: Task,
    call: Callable[..., Any],
    teacher: nn.Module | None = None,
) -> float:
    """The loss a sample, over ``batches``; in evaluation mode.

    A batch without labels is held against what ``teacher`` answers: by the Kullback-Leibler divergence of its
    classes, or the squared distance of other outputs. Raises StageFailed without a batch, or without either.
    """
    device = device_of(module)
    total, samples = 0.0, 0
    for net in (module, teacher):
        if net is not None:
            net.to(device).eval()
    with torch.no_grad():
        for batch in batches:
            moved = batch.to(device)
            outputs = Outputs(call(module, moved.inputs))
            if moved.targets is not None:
                loss = task.loss(outputs, moved)
            elif teacher is not None:
                loss = distance(outputs.main, Outputs(call(teacher, moved.inputs)).main)
            else:
                raise StageFailed("there is no loss without labels; the data must have some here")
            total, samples = total + float(loss) * moved.size, samples + moved.size
    if not samples:
        raise StageFailed("there is no batch to take the loss on; the data are empty")
    return total / samples


def distance(answer: Tensor, reference: Tensor) -> Tensor:
    """The Kullback-Leibler divergence a sample of [n, classes]; of other answers half the mean squared difference."""
    if answer.ndim == 2 and answer.shape[1] > 1:
        return nn.functional.kl_div(
            answer.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True
        )
    return 0.5 * (answer - reference).square().mean()


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU for one that has none."""
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
