"""What every task asks of outputs, labels and metric names, and how it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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


def require_smoothing(share: float) -> None:
    """Raises ValueError where it is no share of the target."""
    if not 0 <= share < 1:
        raise ValueError(f"label_smoothing is {share}; expected 0 or more, and less than 1")


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


def require_boxes(target: Any, where: str, classes: int, lowest: int) -> None:
    """A dict with ``boxes`` [n, 4], corners with an area, and ``labels`` [n] from ``lowest`` on. Raises ConfigError."""
    import torch

    boxes, labels = (target.get(k) if isinstance(target, Mapping) else None for k in ("boxes", "labels"))
    if not isinstance(boxes, torch.Tensor) or not isinstance(labels, torch.Tensor):
        received = (
            f"a dict with {', '.join(target)}" if isinstance(target, Mapping) else type(target).__name__
        )
        raise ConfigError(
            f"{where}: received {received}; expected a dict with the tensors 'boxes' and 'labels'"
        )
    if labels.ndim != 1 or tuple(boxes.shape) != (len(labels), 4):
        raise ConfigError(
            f"{where}: received boxes {form(boxes)} and labels {form(labels)}; expected [n, 4] and [n]"
        )
    if labels.is_floating_point():
        raise ConfigError(
            f"{where}: received labels {form(labels)}; expected integers, the number of a class each"
        )
    if len(labels) and not (int(labels.min()) >= lowest and int(labels.max()) < classes):
        raise ConfigError(
            f"{where}: received labels from {int(labels.min())} to {int(labels.max())}; expected {lowest} to "
            f"{classes - 1}, as the model has {classes} classes"
        )
    if len(labels) and not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise ConfigError(
            f"{where}: a box has no area; expected corners x1 y1 x2 y2 with x2 > x1 and y2 > y1"
        )


def form(tensor: Tensor) -> str:
    """``float32[2, 3]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
