"""Every group keeps the same share of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from deploycompress.pruning.budget import Budget
    from deploycompress.pruning.costs import Costs
    from deploycompress.pruning.groups import ChannelGroup


class Uniform:
    """The largest common share whose aligned widths meet the budget; then what still fits is given back."""

    def __call__(
        self, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], costs: Costs, budget: Budget
    ) -> dict[str, int]:
        from deploycompress.pruning.budget import give_back, largest_share

        widths = largest_share(lambda share: _at_share(groups, share), costs, budget)
        # The most shortened by rounding down comes first.
        return give_back(
            groups, widths, costs, budget, lambda group, wider: wider / group.width, lowest_first=True
        )


def _at_share(groups: Sequence[ChannelGroup], share: float) -> dict[str, int]:
    """The largest width on each group's grid that is at most this share of it, or its smallest."""
    return {g.id: max([w for w in g.grid if w <= share * g.width], default=g.grid[0]) for g in groups}
