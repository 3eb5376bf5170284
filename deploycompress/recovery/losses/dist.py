"""Relations instead of values: the student's probabilities have to correlate with the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from deploycompress.contracts import Batch, Outputs
from deploycompress.recovery.losses.divergence import checked_temperature, temperature_for
from deploycompress.recovery.losses.matching import class_logits

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-8  # a row that does not vary correlates with nothing


class Relations:
    """``T^2 * (beta * mean_i (1 - r(s_i, t_i)) + gamma * mean_c (1 - r(s^c, t^c)))``.

    ``r`` is Pearson's correlation of softened probabilities [batch, classes]: of each sample ``i`` over the classes,
    and of each class ``c`` over the batch. Huang et al., "Knowledge Distillation from A Stronger Teacher" (NeurIPS
    2022), equations 6 to 10; T = 4 and beta = gamma = 2 on CIFAR-100, all 1 on ImageNet there.
    """

    class_axis: ClassVar[int] = 1

    def __init__(self, temperature: float | None = None, beta: float = 1.0, gamma: float = 1.0) -> None:
        if not (beta >= 0 and gamma >= 0):
            raise ValueError(f"beta is {beta} and gamma {gamma}; expected 0 or more")
        self.temperature, self.beta, self.gamma = checked_temperature(temperature), beta, gamma

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pair = class_logits("dist", student, teacher, "[batch, classes, ...]", least=2, axis=1)
        temperature = temperature_for(self.temperature, pair[0].shape[1])
        rows = (z.movedim(1, -1).reshape(-1, z.shape[1]) for z in pair)
        s, t = ((z / temperature).softmax(dim=1) for z in rows)
        between = self.beta * _apart(s, t) + self.gamma * _apart(s.T, t.T)
        return temperature**2 * between


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """``1 - r`` of each row with its other, averaged."""
    import torch.nn.functional as F

    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    return (1 - F.cosine_similarity(a, b, dim=1, eps=TINY)).mean()
