"""Weights whose zeros are a part of the model: named in its checkpoint, and kept zero in training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MARK = "_sparse_weights"  # on the root: it goes with a copy, and whoever loads and saves need not know of it

Masks = list[tuple[nn.Parameter, Tensor]]  # a weight, and False where it is zero


def mark_sparse(module: nn.Module, names: Iterable[str]) -> None:
    """From now on the zeros of these parameters belong to the model; marks that are there already stay."""
    setattr(module, _MARK, tuple(sorted({*getattr(module, _MARK, ()), *names})))


def sparse_weights(module: nn.Module) -> tuple[str, ...]:
    """The marked parameters that are still there: a layer that was replaced takes its mark with it."""
    present = dict(module.named_parameters(remove_duplicate=False))
    return tuple(name for name in getattr(module, _MARK, ()) if name in present)


def zero_masks(module: nn.Module) -> Masks:
    """Where the marked parameters are zero now."""
    weights = [module.get_parameter(name) for name in sparse_weights(module)]
    return [(weight, weight.detach() != 0) for weight in weights]


def keep_zeros(masks: Masks) -> None:
    """Set to zero again what an optimiser step has moved."""
    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask)


def share_of_zeros(weights: Iterable[Tensor]) -> float:
    """Zeros of all elements together; 0 where there are none."""
    zeros = total = 0
    for weight in weights:
        zeros += int((weight == 0).sum())
        total += weight.numel()
    return zeros / max(1, total)
