"""Soft labels: the student learns the teacher's probabilities at a raised temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploycompress.contracts import Batch, Outputs
from deploycompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class SoftLabels:
    """``alpha * T^2 * KL(p_T || p_S) + (1 - alpha) * CE(y, s)``, averaged over the batch.

    ``p_T = softmax(t / T)`` and ``p_S = softmax(s / T)`` of the teacher's and the student's logits ``t`` and ``s``,
    [batch, classes] or [batch, classes, positions ...]; ``CE`` is at temperature 1 on the labels. ``T^2`` keeps
    the soft part's gradients in proportion as T changes. Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network" (2015), section 2. With ``alpha=1`` no labels are needed.
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9) -> None:
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        terms = list(self.terms(student, teacher, batch).values())
        return sum(terms[1:], start=terms[0])

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """The two summands, ``kd`` and ``ce``; one that weighs nothing is left out."""
        s, t = student.main, teacher.main
        if s.shape != t.shape or s.ndim < 2:
            raise ConfigError(
                f"loss kd: the student's output is {list(s.shape)} and the teacher's {list(t.shape)}; expected two of "
                "the same shape [batch, classes, ...]: choose a teacher for the same classes"
            )
        terms: dict[str, Tensor] = {}
        if self.alpha > 0:
            terms["kd"] = self.alpha * self._soft(s, t)
        if self.alpha < 1:
            terms["ce"] = (1 - self.alpha) * _hard(s, batch)
        return terms

    def _soft(self, s: Tensor, t: Tensor) -> Tensor:
        import torch.nn.functional as F

        classes = s.shape[1]
        log_p_s = F.log_softmax(s.movedim(1, -1).reshape(-1, classes) / self.temperature, dim=1)
        log_p_t = F.log_softmax(t.movedim(1, -1).reshape(-1, classes) / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


def _hard(logits: Tensor, batch: Batch) -> Tensor:
    import torch.nn.functional as F

    if batch.targets is None:
        raise ConfigError(
            "loss kd: received no labels; with alpha below 1 it needs them: set alpha: 1, or yield (inputs, labels)"
        )
    return F.cross_entropy(logits, batch.targets.long())
