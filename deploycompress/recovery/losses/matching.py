"""What losses ask of the two outputs they compare, refused with what was received where it does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def alike(loss: str, student: Outputs, teacher: Outputs, form: str, least: int) -> tuple[Tensor, Tensor]:
    """The first output of both: of one shape, ``form`` in words, with at least ``least`` dimensions.

    Raises ConfigError.
    """
    s, t = student.main, teacher.main
    if s.shape != t.shape or s.ndim < least:
        raise ConfigError(
            f"loss {loss}: the student's output is {list(s.shape)} and the teacher's {list(t.shape)}; expected two of "
            f"the same shape {form}: choose a teacher for the same task, or another loss"
        )
    return s, t


def class_logits(
    loss: str, student: Outputs, teacher: Outputs, form: str, least: int, axis: int
) -> tuple[Tensor, Tensor]:
    """As ``alike``, of logits with classes in dimension ``axis``. Raises ConfigError for a single class, too."""
    s, t = alike(loss, student, teacher, form, least)
    if s.shape[axis] < 2:
        raise ConfigError(
            f"loss {loss}: the output is {list(s.shape)}, one class by the form {form}; expected two or more, since the "
            "softmax of one is 1 whatever it is, and teaches nothing: use loss: mse"
        )
    return s, t


def class_labels(loss: str, batch: Batch, shape: tuple[int, ...], why: str) -> Tensor:
    """The batch's labels: class indices of that shape. Raises ConfigError."""
    import torch

    labels = batch.targets
    if not isinstance(labels, torch.Tensor):
        received = "no labels" if labels is None else f"labels of type {type(labels).__name__}"
        raise ConfigError(
            f"loss {loss}: received {received}; expected class indices {list(shape)}: {why}; yield (inputs, labels), "
            "or use loss: kd"
        )
    if labels.is_floating_point() or tuple(labels.shape) != shape:
        raise ConfigError(
            f"loss {loss}: received labels {str(labels.dtype).removeprefix('torch.')}{list(labels.shape)}; expected "
            f"class indices {list(shape)}: {why}"
        )
    return labels.long()
