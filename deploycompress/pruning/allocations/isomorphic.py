"""Groups of the same topology compete with each other only, and every such class keeps the same share."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from deploycompress.pruning.budget import Budget
    from deploycompress.pruning.costs import Costs
    from deploycompress.pruning.groups import ChannelGroup


class Isomorphic:
    """The largest common share of channels that meets the budget; then what still fits is given back.

    Fang et al., "Isomorphic Pruning for Vision Models", section 3: scores of unlike structures (a residual
    stream, the inside of a block) are distributed differently, so only like ones are ranked together. Within a
    class the blocks of channels go first that matter least for what they cost, as in ``global``; the paper,
    where the groups of a class cost the same, ranks by importance alone.
    """

    def __call__(
        self, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], costs: Costs, budget: Budget
    ) -> dict[str, int]:
        from deploycompress.pruning.budget import give_back, largest_share, step_loss, worth

        classes: dict[object, list[ChannelGroup]] = {}
        for group in groups:
            classes.setdefault(group.topology, []).append(group)
        price = worth(groups, costs, budget)
        ranked = [(members, list(_ranked(members, scores, price))) for members in classes.values()]

        def at_share(share: float) -> dict[str, int]:
            found: dict[str, int] = {}
            for members, narrowings in ranked:
                found |= _at_share(members, narrowings, share)
            return found

        widths = largest_share(at_share, costs, budget)

        def gain(group: ChannelGroup, wider: int) -> float:
            """Importance per channel"""
            loss = step_loss(group, scores[group.id], widths[group.id], wider)
            return loss / (wider - widths[group.id])

        return give_back(groups, widths, costs, budget, gain)


def _ranked(
    members: Sequence[ChannelGroup], scores: Mapping[str, Tensor], price: Mapping[str, float]
) -> Iterator[tuple[str, int]]:
    """(group, narrower width) one after the other, the least importance per cost first."""
    from deploycompress.pruning.budget import step_loss

    by_id = {group.id: group for group in members}

    def narrowing(id: str, place: int) -> tuple[float, str, int]:
        """(importance per cost, group, place of the narrower width on its grid)"""
        group = by_id[id]
        narrower, wider = group.grid[place], group.grid[place + 1]
        loss, cost = step_loss(group, scores[id], narrower, wider), price[id] * (wider - narrower)
        return loss / cost if cost > 0 else float("inf"), id, place

    heap = [narrowing(group.id, len(group.grid) - 2) for group in members if len(group.grid) > 1]
    heapq.heapify(heap)
    while heap:
        _, id, place = heapq.heappop(heap)
        yield id, by_id[id].grid[place]
        if place:
            heapq.heappush(heap, narrowing(id, place - 1))


def _at_share(
    members: Sequence[ChannelGroup], narrowings: Sequence[tuple[str, int]], share: float
) -> dict[str, int]:
    """The widths of one class when at most this share of its channels stays, as far as its grids allow."""
    widths = {group.id: group.width for group in members}
    left = sum(widths.values())
    most = share * left
    for id, narrower in narrowings:
        if left <= most:
            break
        left -= widths[id] - narrower
        widths[id] = narrower
    return widths
