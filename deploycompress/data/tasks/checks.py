"""What every task asks of outputs, labels and metric names, and how it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploycompress.contracts import Batch, MetricInfo, Outputs
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def table(*metrics: MetricInfo) -> dict[str, MetricInfo]:
    return {metric.name: metric for metric in metrics}


def share(name: str) -> MetricInfo:
    """A metric from 0 to 1 that is better the higher it is."""
    return MetricInfo(name, higher_is_better=True, unit="share")


def require_metric(task: str, name: str, known: Mapping[str, MetricInfo]) -> None:
    """Raises ValueError, which the configuration's reader gives its place, for a metric the task has not."""
    if name not in known:
        raise ValueError(f"metric {name!r} is not defined for {task}; expected one of {', '.join(known)}")


def chosen(outputs: Outputs, name: str | None, task: str) -> Tensor:
    """The output by name; None: the first one. Raises ConfigError when the model has no such output."""
    if name is None:
        return outputs.main
    if name not in outputs.tensors:
        raise ConfigError(
            f"{task}: the model has no output {name!r}; received {', '.join(outputs.tensors)}: name one of these in "
            "task.args, or let the model return it"
        )
    return outputs.tensors[name]


def require_labels(batch: Batch, task: str, expected: str) -> Tensor:
    """The targets, which are a tensor with a row for every sample. Raises ConfigError otherwise."""
    import torch

    labels = batch.targets
    if not isinstance(labels, torch.Tensor):
        received = "no labels" if labels is None else f"labels of type {type(labels).__name__}"
        raise ConfigError(
            f"{task}: received {received}; expected {expected}: let the data source yield (inputs, labels)"
        )
    return labels


def require_indices(labels: Tensor, classes: int, task: str, ignored: int | None = None) -> None:
    """Integers from 0 to ``classes - 1``, besides ``ignored``. Raises ConfigError."""
    import torch

    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(
            f"{task}: received labels {form(labels)}; expected integers {list(labels.shape)}, the number of a class each"
        )
    counted = labels if ignored is None else labels[labels != ignored]
    if counted.numel() and not (int(counted.min()) >= 0 and int(counted.max()) < classes):
        besides = "" if ignored is None else f", or {ignored} for what is not counted"
        raise ConfigError(
            f"{task}: received labels from {int(counted.min())} to {int(counted.max())}; expected 0 to {classes - 1}"
            f"{besides}, as the model has {classes} outputs: change model.args, or number the classes from 0"
        )


def require_classes(received: int, expected: int | None, task: str) -> None:
    if expected is not None and received != expected:
        raise ConfigError(
            f"{task}: the model has {received} outputs; expected {expected}, as task.args says: "
            "change model.args or task.args.classes"
        )


def form(tensor: Tensor) -> str:
    """``float32[2, 3]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
