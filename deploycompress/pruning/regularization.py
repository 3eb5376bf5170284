"""Penalties that draw whole channels towards zero while a network trains, so that pruning them costs little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.norms import channel_squares, weakest

SMALLEST = 1e-12  # below the root: the gradient of a norm that is zero is zero


class GroupLasso:
    """``strength * sum over groups and channels of ||w_channel||_2``, over every slice that goes with the channel.

    Yuan, Lin, "Model selection and estimation in regression with grouped variables"; over dependency groups as in
    Fang et al., "DepGraph: Towards Any Structural Pruning", section 3.3.
    """

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup], strength: float) -> None:
        self._module, self._groups, self._strength = module, groups, strength

    def __call__(self) -> Mapping[str, Tensor]:
        norms = [(channel_squares(self._module, group) + SMALLEST).sqrt().sum() for group in self._groups]
        return {"group_lasso": self._strength * torch.stack(norms).sum()}


class GrowingPenalty:
    """``lambda / 2 * ||w||^2`` over the channels that will go, with a lambda that grows up to a ceiling.

    They are the ``share`` of every group that is least by its norm when training begins. Lambda is ``strength``
    for the first ``every`` calls (one an optimiser step), then twice that, and so on. Wang et al., "Neural Pruning
    via Growing Regularization", algorithm 1 (GReg-1), over dependency groups.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        share: float,
        strength: float,
        every: int,
        ceiling: float,
    ) -> None:
        self._module, self._groups = module, groups
        self._strength, self._every, self._ceiling = strength, every, ceiling
        self._calls = 0
        self.going = {g.id: weakest(g, channel_squares(module, g).sqrt(), share) for g in groups}

    @property
    def factor(self) -> float:
        """Lambda of the next step."""
        return min(self._ceiling, self._strength * (1 + self._calls // self._every))

    def state(self) -> Mapping[str, int]:
        """What a checkpoint keeps; the channels that will go follow from the weights that training began with."""
        return {"calls": self._calls}

    def restore(self, state: Mapping[str, int]) -> None:
        self._calls = state["calls"]

    def __call__(self) -> Mapping[str, Tensor]:
        factor = self.factor
        self._calls += 1
        squares = [channel_squares(self._module, g) for g in self._groups]
        going = [s[self.going[g.id].to(s.device)].sum() for g, s in zip(self._groups, squares, strict=True)]
        return {"growing": factor / 2 * torch.stack(going).sum()}
