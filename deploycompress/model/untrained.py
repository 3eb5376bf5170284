"""Random values for layers that are initialised to zero, so that an untrained model shows what it computes."""

from __future__ import annotations

import torch
from torch import nn


def wake_zero_layers(module: nn.Module) -> None:
    """Draw weights that are all zero anew, in place; the same values every time.

    Vision transformers start with a classifier of zeros, and what is before it then does not matter to the
    output. Weights have at least two dimensions here: a bias of zeros hides nothing.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
                continue
            if not weight.numel() or bool(weight.any()):
                continue
            drawn = torch.randn(weight.shape, generator=generator) / weight.shape[1:].numel() ** 0.5
            weight.copy_(drawn)
