"""The widths, and the blocks, that lose the least importance within the budget: the default for a latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from deploycompress.pruning.blocks import Block
    from deploycompress.pruning.budget import Budget
    from deploycompress.pruning.costs import Costs
    from deploycompress.pruning.groups import ChannelGroup

TIGHTENED = 6  # times that the limits are made tighter, where operators depend on more than two groups


class Latency:
    """Minimises the sum of the scores of what goes, subject to every limit of the budget.

    Greedy first, then the exact mixed-integer program (after Sun et al., "Multi-Dimensional Pruning", which
    lets widths and blocks compete over a latency table of input and output widths; written from the paper); the
    better of the two is taken. It serves any cost, a latency above all, because it sees what two widths save
    together.
    """

    removes_blocks: ClassVar[bool] = True

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, Tensor],
        costs: Costs,
        budget: Budget,
        blocks: Sequence[Block] = (),
    ) -> dict[str, int]:
        from deploycompress.pruning.solver.exact import exact
        from deploycompress.pruning.solver.greedy import give_back, greedy
        from deploycompress.pruning.solver.problem import problem

        if not groups and not blocks:
            return {}
        whole = problem(groups, blocks, scores, costs, budget)
        subject = whole
        widths: dict[str, int] = {}
        for _ in range(TIGHTENED):
            found = [state for state in (exact(subject), greedy(subject)) if state is not None]
            found = [give_back(subject, state) for state in found if subject.met(state)]
            if not found:
                break
            widths = subject.widths(min(found, key=subject.loss))
            cost = costs.at(widths)
            if budget.met(cost):
                return widths
            # Costs of three groups in one operator are not all seen: ask for as much less as they were off.
            off = [min(1.0, limit / cost[name]) for name, limit in budget.limits.items()]
            subject = replace(subject, limits=subject.limits * off * 0.999)
        return {id: choice.options[0] for id, choice in whole.choices.items()}
