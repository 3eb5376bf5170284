"""Importance by how far a filter is from those that could stand for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from deploycompress.contracts import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.groups import ChannelGroup


class Fpgm:
    """The summed distance of a channel's filter to the other filters of its layer.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    equation 6: filters near the geometric median are the ones that the rest replaces. Averaged over the layers
    that make the channel together; only channels of one segment count as others (the filters of different runs
    of a grouped convolution read different inputs). Needs no data; scores of different groups cannot be compared.
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
        return {group.id: self._of(model, group) for group in groups}

    def _of(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        import torch

        from deploycompress.pruning.slices import producers, slices

        total = torch.zeros(group.width, dtype=torch.float64)
        layers = 0
        for member in producers(model, group):
            weight = model.get_parameter(f"{member.layer}.weight").detach().double().cpu()
            filters, segments = (
                slices(model, member, weight)[member.positions],
                group.segments[member.channels],
            )
            apart = torch.cdist(filters, filters) * (segments[:, None] == segments)
            total.index_add_(0, member.channels, apart.sum(1))
            layers += 1
        return total / layers
