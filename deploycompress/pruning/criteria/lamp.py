"""Importance by the share of a group's weight that a channel has among those that outlive it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Lamp:
    """A channel's squared L2 norm over the sum of those that are at least as large.

    Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", equation 5, with channels in place of
    weights: score = n_j / sum of n_k >= n_j. The largest channel of every group scores 1, so none is emptied,
    and scores of different groups can be compared. Needs no data.
    """

    comparable: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Iterable[Batch],
        task: Task,
        call: Callable[..., Any],
    ) -> Mapping[str, Tensor]:
        import torch

        from deploycompress.pruning.slices import by_channel, producers, weight_name

        scores = {}
        for group in groups:
            norms = torch.zeros(group.width, dtype=torch.float64)
            for member in producers(model, group):
                weight = model.get_parameter(weight_name(model, member)).detach().double()
                norms += by_channel(model, group, member, weight.square()).cpu()
            order = norms.argsort(descending=True, stable=True)
            survivors = norms[order].cumsum(0)
            share = torch.empty_like(norms)
            share[order] = norms[order] / survivors.clamp_min(torch.finfo(torch.float64).tiny)
            scores[group.id] = share
        return scores
