"""What a pruned model may cost, and the widths that meet it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from deploycompress.contracts import Allocation
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.pruning.costs import Cost, Costs
from deploycompress.pruning.groups import ChannelGroup, Unpruned

if TYPE_CHECKING:
    from deploycompress.pruning.blocks import Block

OnUnreachable = Literal["fail", "best"]


@dataclass(frozen=True)
class Budget:
    """The most that each cost may be; several must all hold.

    ``original``: what the unpruned model costs, which shares are of.
    """

    limits: Mapping[str, float]
    original: Cost

    def met(self, cost: Cost) -> bool:
        return all(cost[name] <= limit for name, limit in self.limits.items())

    def saved(self, before: Cost, after: Cost) -> float:
        """What a step saves of the limits that ``before`` is above, as a share of the original's costs."""
        return sum(
            (before[name] - after[name]) / self.original[name]
            for name, limit in self.limits.items()
            if before[name] > limit
        )

    def exceeded(self, cost: Cost) -> str:
        """Each limit that ``cost`` is above, with shares of the original: ``macs 31.2% (target 20%)``."""
        return ", ".join(
            f"{name} {_percent(cost[name] / self.original[name])} (target {_percent(limit / self.original[name])})"
            for name, limit in self.limits.items()
            if cost[name] > limit
        )


def _percent(share: float) -> str:
    """One decimal, or as many as tell two small shares apart."""
    return f"{share:.1%}" if share >= 0.01 else f"{100 * share:.3g}%"


@dataclass(frozen=True)
class Allocated:
    """The widths kept, and whether they meet the budget."""

    widths: Mapping[str, int]
    cost: Cost
    reached: bool
    shortfall: str = ""  # what is above its limit, where the budget is not met


def allocate(
    allocation: Allocation,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    costs: Costs,
    budget: Budget,
    *,
    on_unreachable: OnUnreachable = "fail",
    unpruned: Sequence[Unpruned] = (),
    blocks: Sequence[Block] = (),
) -> Allocated:
    """The widths that ``allocation`` chooses, checked against grid and budget.

    ``blocks``: what may be taken out as a whole, for an allocation that can; a block is 0 (out) or 1 wide.
    Where even the smallest widths are above the budget: StageFailed with ``fail``, the smallest with ``best``.
    Raises ConfigError for an allocation that breaks its promise.
    """
    smallest = smallest_widths(groups, blocks)
    least = costs.at(smallest)
    if shortfall := out_of_reach(groups, least, budget):
        if on_unreachable == "fail":
            raise StageFailed(unreachable(shortfall, groups, unpruned))
        return Allocated(smallest, least, False, shortfall)
    with_blocks = {"blocks": blocks} if blocks else {}
    widths = allocation(groups, scores, costs, budget, **with_blocks)
    name = type(allocation).__name__
    gone = {id for block in blocks if widths.get(block.id) == 0 for id in block.groups}
    for group in groups:
        if widths.get(group.id) not in ((0,) if group.id in gone else group.grid):
            raise ConfigError(
                f"allocation {name}: received the width {widths.get(group.id)} for {group.id}; "
                f"expected one of {list(group.grid)}"
            )
    cost = costs.at(widths)
    if not budget.met(cost):
        raise ConfigError(f"allocation {name}: its widths are above the budget: {budget.exceeded(cost)}")
    return Allocated(dict(widths), cost, True)


def smallest_widths(groups: Sequence[ChannelGroup], blocks: Sequence[Block] = ()) -> dict[str, int]:
    """Every group at the first width of its grid, every block and what is inside it gone."""
    inside = {id for block in blocks for id in block.groups}
    widths = {group.id: 0 if group.id in inside else group.grid[0] for group in groups}
    return widths | {block.id: 0 for block in blocks}


def out_of_reach(groups: Sequence[ChannelGroup], least: Cost, budget: Budget) -> str:
    """What is above its limit even at the ``least`` cost that can be had, in words; empty where nothing is."""
    if "channels" in budget.limits and not groups:
        return "channels 100.0%: there is none that could go"
    return budget.exceeded(least)


def unreachable(shortfall: str, groups: Sequence[ChannelGroup], unpruned: Sequence[Unpruned]) -> str:
    """The error, with what kept the groups from being smaller and what to do."""
    text = f"the target cannot be reached: the smallest is {shortfall}, with {len(groups)} groups at their smallest"
    if stiff := sum(len(group.grid) == 1 for group in groups):
        text += f" ({stiff} of which have no width but their own at this alignment)"
    if unpruned:
        shown = "; ".join(f"{u.layer}: {u.reason}" for u in unpruned[:3])
        more = f"; and {len(unpruned) - 3} more" if len(unpruned) > 3 else ""
        text += f" and {len(unpruned)} layers left whole ({shown}{more})"
    return text + ". Raise the target, or set on_unreachable: best"


def worth(groups: Sequence[ChannelGroup], costs: Costs, budget: Budget) -> dict[str, float]:
    """Group id -> what one of its channels saves of the limits, with all other groups whole.

    Of the limits that the whole model is above; of all of them where it is above none: a predicted cost
    may be within a limit that the measured one is not.
    """
    full = {group.id: group.width for group in groups}
    before = costs.at(full)
    if budget.met(before):
        budget = Budget(dict.fromkeys(budget.limits, 0.0), budget.original)
    found = {}
    for group in groups:
        narrower = group.grid[0]
        saved = budget.saved(before, costs.at(full | {group.id: narrower})) if narrower < group.width else 0.0
        found[group.id] = max(0.0, saved) / max(1, group.width - narrower)  # narrower may be predicted slower
    return found


# ---------------------------------------------------------------- what allocations share


HALVINGS = 40  # of the interval in which a share is looked for


def largest_share(
    at_share: Callable[[float], Mapping[str, int]], costs: Costs, budget: Budget
) -> Mapping[str, int]:
    """The widths at the largest share in [0, 1] that meets the budget; those at 0 are known to."""
    low, high = 0.0, 1.0
    widths = at_share(low)
    for _ in range(HALVINGS):
        share = (low + high) / 2
        tried = at_share(share)
        if budget.met(costs.at(tried)):
            low, widths = share, tried
        else:
            high = share
    return widths


def step_loss(group: ChannelGroup, scores: Tensor, narrower: int, wider: int) -> float:
    """Importance of the channels that are kept at ``wider`` and not at ``narrower``."""
    return float(scores[group.keep(scores, wider)].sum() - scores[group.keep(scores, narrower)].sum())


def give_back(
    groups: Sequence[ChannelGroup],
    widths: Mapping[str, int],
    costs: Costs,
    budget: Budget,
    rank: Callable[[ChannelGroup, int], float],
    *,
    lowest_first: bool = False,
) -> dict[str, int]:
    """Widen groups step by step for as long as the budget holds.

    ``rank(group, wider)`` says what goes first: the highest, or with ``lowest_first`` the lowest. A step that
    does not fit is not tried again.
    """
    given = dict(widths)
    open_groups = {group.id: group for group in groups}
    while open_groups:
        steps = {
            id: min([w for w in group.grid if w > given[id]], default=0) for id, group in open_groups.items()
        }
        open_groups = {id: group for id, group in open_groups.items() if steps[id]}
        if not open_groups:
            break
        order = sorted(open_groups, key=lambda id: rank(open_groups[id], steps[id]), reverse=not lowest_first)
        for id in order:
            if budget.met(costs.at(given | {id: steps[id]})):
                given[id] = steps[id]
                break
            del open_groups[id]
    return given
