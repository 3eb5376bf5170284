"""Soft labels: the student learns the teacher's probabilities at a raised temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError
from deploycompress.recovery.losses.divergence import checked_temperature, soft_divergence
from deploycompress.recovery.losses.matching import class_logits

if TYPE_CHECKING:
    from torch import Tensor


class SoftLabels:
    """``T^2 * KL(p_T || p_S)``, averaged over the batch and, where there are any, over positions.

    ``p_T = softmax(t / T)`` and ``p_S = softmax(s / T)`` of the teacher's and the student's logits ``t`` and ``s``,
    [batch, classes] or [batch, classes, positions ...]. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural
    Network" (2015), section 2. With the labels beside it, as distillation adds them, the whole is
    ``alpha * T^2 * KL + (1 - alpha) * CE``.
    """

    class_axis: ClassVar[int] = 1

    def __init__(self, temperature: float | None = None) -> None:
        self.temperature = checked_temperature(temperature)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s, t = class_logits("kd", student, teacher, "[batch, classes, ...]", least=2, axis=1)
        labels = getattr(batch.targets, "shape", None)
        if s.ndim == 3 and labels == s.shape[:2] != (len(s), s.shape[2]):
            raise ConfigError(
                f"loss kd: the outputs are {list(s.shape)} and the labels {list(labels)}; expected classes in the second "
                "dimension, [batch, classes, positions]: for [batch, tokens, classes] use loss: token_kd"
            )
        return soft_divergence(s.movedim(1, -1), t.movedim(1, -1), self.temperature).mean()
