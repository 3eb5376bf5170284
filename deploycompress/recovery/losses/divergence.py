"""The Kullback-Leibler divergence between softened class probabilities, one value for each prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(t / T) || softmax(s / T))`` over the last dimension: logits [..., classes] -> [...].

    ``T^2`` keeps the gradients in proportion as T changes: Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network" (2015), section 2.
    """
    import torch.nn.functional as F

    log_p_s = F.log_softmax(student / temperature, dim=-1)
    log_p_t = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)


def checked_temperature(temperature: float) -> float:
    """Raises ValueError unless it is above 0."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    return temperature
