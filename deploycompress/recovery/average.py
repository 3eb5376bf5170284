"""The exponential moving average of a network that trains."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """``a = d a + (1 - d) w`` after every step, over parameters and floating-point buffers; others are copied.

    ``d`` is ``decay``, and less at first, ``(1 + t) / (10 + t)`` after ``t`` steps, so that a short training does not
    end with an average of what it began with. Polyak, Juditsky, "Acceleration of Stochastic Approximation by
    Averaging"; as it is used in Tarvainen, Valpola, "Mean teachers are better role models".
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self._decay = decay

    def update(self, net: nn.Module, steps: int) -> None:
        """``steps``: how many are done."""
        share = 1 - min(self._decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for own, other in zip(self.net.parameters(), net.parameters(), strict=True):
                own.lerp_(other, share)
            for buffer, current in zip(self.net.buffers(), net.buffers(), strict=True):
                if buffer.is_floating_point():
                    buffer.lerp_(current, share)
                else:
                    buffer.copy_(current)
