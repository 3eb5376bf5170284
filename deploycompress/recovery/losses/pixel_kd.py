"""Soft labels for every pixel that is judged: those marked as ignored have no say."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.divergence import checked_temperature, soft_divergence
from deploycompress.recovery.losses.matching import class_logits

if TYPE_CHECKING:
    from torch import Tensor


class PixelSoftLabels:
    """``sum_i m_i T^2 KL(p_T,i || p_S,i) / sum_i m_i`` over the pixels of a batch: logits [batch, classes, rows, columns].

    ``m_i`` is 0 where the label [batch, rows, columns] is ``ignore_index``, and 1 everywhere without labels. The
    pixel-wise loss of Liu et al., "Structured Knowledge Distillation for Semantic Segmentation" (CVPR 2019),
    section 3.1, with soft labels as in Hinton et al. (2015).
    """

    class_axis: ClassVar[int] = 1
    least_rank: ClassVar[int] = 3

    def __init__(self, temperature: float | None = None, ignore_index: int = 255) -> None:
        self.temperature, self.ignore_index = checked_temperature(temperature), ignore_index

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        import torch

        s, t = class_logits("pixel_kd", student, teacher, "[batch, classes, rows, columns]", least=3, axis=1)
        divergence = soft_divergence(s.movedim(1, -1), t.movedim(1, -1), self.temperature)
        labels = batch.targets
        if labels is None:
            return divergence.mean()
        if not isinstance(labels, torch.Tensor) or labels.shape != divergence.shape:
            received = str(list(labels.shape)) if isinstance(labels, torch.Tensor) else type(labels).__name__
            raise ConfigError(
                f"loss pixel_kd: received labels {received}; expected {list(divergence.shape)}, as the logits are "
                f"{list(s.shape)}: one class index a pixel, or no labels"
            )
        counts = labels != self.ignore_index
        return divergence.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
