"""All blocks of channels of all groups compete: the least important go first."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from deploycompress.pruning.budget import Budget
    from deploycompress.pruning.costs import Costs
    from deploycompress.pruning.groups import ChannelGroup


class Global:
    """Takes away the block (one step of a group's grid) with the lowest mean score until the budget is met.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", rank single
    channels; whole aligned blocks are what kernels can use. What still fits at the end is given back, the
    most important first.
    """

    def __call__(
        self, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], costs: Costs, budget: Budget
    ) -> dict[str, int]:
        from deploycompress.pruning.budget import give_back, step_loss

        by_id = {group.id: group for group in groups}
        widths = {group.id: group.width for group in groups}

        def next_block(group: ChannelGroup) -> tuple[float, str, int] | None:
            below = [w for w in group.grid if w < widths[group.id]]
            if not below:
                return None
            loss = step_loss(group, scores[group.id], below[-1], widths[group.id])
            return loss / (widths[group.id] - below[-1]), group.id, below[-1]

        heap = [block for group in groups if (block := next_block(group)) is not None]
        heapq.heapify(heap)
        while heap and not budget.met(costs.at(widths)):
            _, id, width = heapq.heappop(heap)
            widths[id] = width
            block = next_block(by_id[id])
            if block is not None:
                heapq.heappush(heap, block)

        def gain(group: ChannelGroup, wider: int) -> float:
            loss = step_loss(group, scores[group.id], widths[group.id], wider)
            return loss / (wider - widths[group.id])

        return give_back(groups, widths, costs, budget, gain)
