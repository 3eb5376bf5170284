"""Importance by the size of all weights that a channel takes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class GroupNorm:
    """The L2 norm of a channel's weights in every layer that makes or reads it.

    Fang et al., "DepGraph: Towards Any Structural Pruning", equation 4, with one term for each layer. Needs no
    data; scores of different groups cannot be compared.
    """

    comparable: ClassVar[bool] = False
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

        from deploycompress.pruning.slices import by_channel, consumers, producers, weight_name

        scores = {}
        for group in groups:
            total = torch.zeros(group.width, dtype=torch.float64)
            for member in (*producers(model, group), *consumers(model, group)):
                weight = model.get_parameter(weight_name(model, member)).detach().double()
                total += by_channel(model, group, member, weight.square()).cpu()
            scores[group.id] = total.sqrt()
        return scores
