"""A network's figures on one split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Outputs, RunContext, Task, targets_are_classes
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


def validated(module: nn.Module, context: RunContext) -> dict[str, float]:
    """The metrics on the validation split; none in a process whose network is not kept, which need not read it too."""
    from deploycompress.recovery.processes import keeps_result

    return (
        evaluate(module, context.model, context.data.loader("val"), context.task)[0] if keeps_result() else {}
    )


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

    A batch without labels is held against what ``teacher`` answers, by ``distance``. Both networks are in evaluation
    mode afterwards, and ``teacher`` where ``module`` is. Raises StageFailed without a batch, or without either.
    """
    device, classes = device_of(module), targets_are_classes(task)
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
                wanted = answer_of(task, Outputs(call(teacher, moved.inputs)))
                loss = distance(answer_of(task, outputs), wanted, classes)
            else:
                raise StageFailed("there is no loss without labels; the data must have some here")
            total, samples = total + float(loss) * moved.size, samples + moved.size
    if not samples:
        raise StageFailed("there is no batch to take the loss on; the data are empty")
    return total / samples


def answer_of(task: Task, outputs: Outputs) -> Tensor:
    """The output that the task reads, where it says so; else the first of floating point. Raises ConfigError."""
    read: Callable[[Outputs], Tensor] | None = getattr(task, "answer", None)
    if read is not None:
        return read(outputs)
    floating = [tensor for tensor in outputs.tensors.values() if tensor.is_floating_point()]
    if not floating:
        raise ConfigError(
            f"the model's outputs are {', '.join(outputs.tensors)}, none of floating point; expected one to compare by "
            "where a batch has no labels"
        )
    return floating[0]


def distance(answer: Tensor, reference: Tensor, classes: bool) -> Tensor:
    """The Kullback-Leibler divergence a sample of [n, classes]; of other answers half the mean squared difference.

    ``classes``: whether that is what two dimensions are; columns of numbers are not.
    """
    if classes and answer.ndim == 2 and answer.shape[1] > 1:
        return nn.functional.kl_div(
            answer.log_softmax(1), reference.log_softmax(1), reduction="batchmean", log_target=True
        )
    return 0.5 * (answer - reference).square().mean()


def device_of(module: nn.Module) -> torch.device:
    """Where its parameters are; the CPU for one that has none."""
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
