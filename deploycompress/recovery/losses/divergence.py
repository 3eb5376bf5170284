"""The Kullback-Leibler divergence between softened class probabilities, one value for each prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

USUAL = 4.0  # temperature, of up to FEW_CLASSES
FEW_CLASSES = 100


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    """``T^2 * KL(softmax(t / T) || softmax(s / T))`` over the last dimension: logits [..., classes] -> [...].

    ``T^2`` keeps the gradients in proportion as T changes: Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network" (2015), section 2.
    """
    import torch.nn.functional as F

    temperature = temperature_for(temperature, student.shape[-1])
    log_p_s = F.log_softmax(student / temperature, dim=-1)
    log_p_t = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)


def temperature_for(given: float | None, classes: int) -> float:
    """``given``, or what is usual for as many classes where it is None.

    Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022), section 4: 4 on CIFAR-100, 1 on ImageNet.
    """
    if given is not None:
        return given
    return USUAL if classes <= FEW_CLASSES else 1.0


def checked_temperature(temperature: float | None) -> float | None:
    """Raises ValueError unless it is above 0, or None."""
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    return temperature
