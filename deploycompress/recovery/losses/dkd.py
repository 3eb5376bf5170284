"""Decoupled soft labels: what the teacher says of the right class, and of the others among themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.recovery.losses.divergence import checked_temperature, soft_divergence, temperature_for
from deploycompress.recovery.losses.matching import class_labels, class_logits

if TYPE_CHECKING:
    from torch import Tensor


class DecoupledSoftLabels:
    """``T^2 * (KL(b_T || b_S) + beta * KL(q_T || q_S))``, averaged over the batch.

    Of softened probabilities ``p``: ``b = (p_y, 1 - p_y)`` for the label ``y``; ``q = p_i / (1 - p_y)`` over the
    other classes. Soft labels are the case ``beta = 1 - p_T,y``, which silences ``q`` where the teacher is sure.
    Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022), equations 5 to 7, with their alpha = 1; they use
    beta 8 with T 4 on CIFAR-100, and beta 0.5 with T 1 on ImageNet. ``warmup``: the share of the training in which
    the loss grows from zero to its full weight. Logits [batch, classes], labels [batch].
    """

    class_axis: ClassVar[int] = 1
    reads_labels: ClassVar[bool] = True

    def __init__(self, temperature: float | None = None, beta: float = 8.0, warmup: float = 0.0) -> None:
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; expected 0 or more")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; expected a share of the training: 0 or more, less than 1")
        self.temperature, self.beta, self.warmup = checked_temperature(temperature), beta, warmup
        self._done = 1.0  # until the loop says otherwise

    def progress(self, done: float) -> None:
        self._done = done

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s, t = class_logits("dkd", student, teacher, "[batch, classes]", least=2, axis=1)
        labels = class_labels("dkd", batch, (len(s), *s.shape[2:]), "it takes the right class by itself")
        temperature = temperature_for(self.temperature, s.shape[1])
        (own_s, other_s), (own_t, other_t) = (_decoupled(z, labels, temperature) for z in (s, t))
        right = soft_divergence(own_s, own_t, temperature).mean()
        wrong = soft_divergence(other_s, other_t, temperature).mean()
        grown = min(1.0, self._done / self.warmup) if self.warmup else 1.0
        return grown * (right + self.beta * wrong)


def _decoupled(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[batch, classes, ...] -> logits [samples, 2] of the label against all others, and [samples, classes - 1]."""
    import torch
    import torch.nn.functional as F

    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    is_label = F.one_hot(labels.reshape(-1), rows.shape[1]).bool()
    own = rows[is_label]
    others = rows[~is_label].reshape(len(rows), rows.shape[1] - 1)
    # The softmax at T of (z_y, T log sum exp(z_i / T)) is (p_y, 1 - p_y).
    rest = temperature * torch.logsumexp(others / temperature, dim=1)
    return torch.stack([own, rest], dim=1), others
