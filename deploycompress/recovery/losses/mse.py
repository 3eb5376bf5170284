"""Squared distance: the student learns the teacher's outputs as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.recovery.losses.matching import alike

if TYPE_CHECKING:
    from torch import Tensor


class SquaredDistance:
    """``mean((s - t)^2)`` over every value of the first output, of any shape: logits, or what is regressed.

    Ba, Caruana, "Do Deep Nets Really Need to be Deep?" (NIPS 2014), equation 2; for logits against soft labels Kim
    et al., "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation" (2021).
    """

    class_axis: ClassVar[None] = None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s, t = alike("mse", student, teacher, "[batch, ...]", least=1)
        return (s - t).square().mean()
