"""From a model and a target to what is kept of it: groups found and scored, widths chosen within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from deploycompress.contracts import Allocation, Model, Note
from deploycompress.errors import StageFailed
from deploycompress.pruning.blocks import Block, find_blocks, taken
from deploycompress.pruning.budget import (
    Allocated,
    Budget,
    OnUnreachable,
    allocate,
    out_of_reach,
    smallest_widths,
    unreachable,
    worth,
)
from deploycompress.pruning.context import Scores, Widths, in_context
from deploycompress.pruning.costs import Cost, Costs, WidthCosts, count
from deploycompress.pruning.discovery import find_groups, producing_layers
from deploycompress.pruning.groups import ChannelGroup, Unpruned, choose, on_grid
from deploycompress.pruning.losses import Losses
from deploycompress.pruning.target import Target

ALIGN = 8  # where no latency is measured; every kernel that counts works on multiples of it

Score = Callable[[Sequence[ChannelGroup], Mapping[str, float]], dict[str, Tensor]]  # groups, worth -> scores
ToLosses = Callable[[Sequence[ChannelGroup], Mapping[str, Tensor], Sequence[Block]], Losses]
Solve = Callable[[Scores, Sequence[Block]], Widths | None]  # widths within the budget, None: there are none


@dataclass(frozen=True)
class Request:
    """What is wanted of a plan; ``module`` may have been pruned before, shares are of a fresh build."""

    module: nn.Module
    model: Model
    target: Target
    allocation: Allocation
    align: int | None  # None: what pays
    exclude: tuple[str, ...]
    on_unreachable: OnUnreachable
    score: Score
    to_losses: ToLosses | None = None  # scores in units of the loss, and the losses of blocks; None: neither
    remove_blocks: bool = True  # where they have losses

    def blocks(self, module: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[Block, ...]:
        """What may be taken out of ``module``, where that is wanted and the allocation can."""
        if self.to_losses is None or not self.remove_blocks or not self._adds_losses_up:
            return ()
        return find_blocks(module, self.model, groups, self.exclude)

    def scored(
        self,
        groups: Sequence[ChannelGroup],
        blocks: Sequence[Block],
        worth: Mapping[str, float],
        solve: Solve,
    ) -> tuple[dict[str, Tensor], tuple[Block, ...]]:
        """Scores of groups and blocks by id, and the blocks that can go: without the others the loss is infinite."""
        scores = self.score(groups, worth)
        if self.to_losses is None or not self._adds_losses_up or not (groups or blocks):
            return scores, ()
        losses = self.to_losses(groups, scores, blocks)
        scores = losses.scores
        can_go = tuple(block for block in blocks if bool(scores[block.id].isfinite().all()))
        scores = in_context(
            groups, can_go, scores, lambda found: solve(found, can_go), losses.of_plan, losses.rounds
        )
        return scores, can_go

    @property
    def _adds_losses_up(self) -> bool:
        """Whether the allocation adds up what groups and blocks lose; the others only rank channels."""
        return getattr(self.allocation, "removes_blocks", False)


@dataclass(frozen=True)
class Plan:
    """What is kept; ``original`` is what the unpruned model costs."""

    groups: tuple[ChannelGroup, ...]
    unpruned: tuple[Unpruned, ...]
    allocated: Allocated
    kept: Mapping[str, Tensor]
    original: Cost
    align: int
    removed: tuple[Block, ...] = ()
    figures: Mapping[str, object] | None = None  # of a latency: how it was predicted and measured
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class _Counted:
    """A model on a grid, and what of the target can be counted."""

    groups: tuple[ChannelGroup, ...]
    blocks: tuple[Block, ...]
    unpruned: tuple[Unpruned, ...]
    costs: WidthCosts
    budget: Budget

    @classmethod
    def of(cls, request: Request, target: Target, align: int) -> _Counted:
        found = find_groups(request.module, request.model, request.exclude)
        original = request.model.build()
        widths = original_widths(request.module, original, found.groups)
        groups = on_grid(found.groups, align, widths)
        full = full_cost(original, request.model, groups, widths)
        blocks = request.blocks(request.module, groups)
        costs = WidthCosts(request.module, groups, request.model, blocks)
        return cls(groups, blocks, found.unpruned, costs, Budget(target.limits(full), full))

    def require_reach(self) -> None:
        """Raises StageFailed where the target is out of reach with every block gone and every group at its smallest."""
        least = self.costs.at(smallest_widths(self.groups, self.blocks))
        if shortfall := out_of_reach(self.groups, least, self.budget):
            raise StageFailed(unreachable(shortfall, self.groups, self.unpruned))


def require_counted(request: Request) -> None:
    """Before anything is trained, measured or tried: whether what can be counted of the target can be had at all.

    Raises StageFailed, unless the best is wanted.
    """
    counted = request.target.counted()
    if counted is not None and request.on_unreachable == "fail":
        _Counted.of(request, counted, request.align or 1).require_reach()


def plan_by_counting(request: Request) -> Plan:
    """For a target of MACs, parameters, bytes and channels, which can be counted."""
    align = request.align or ALIGN
    counted = _Counted.of(request, request.target, align)
    groups, blocks, costs, budget = counted.groups, counted.blocks, counted.costs, counted.budget
    if request.on_unreachable == "fail":
        counted.require_reach()

    def solve(scores: Scores, blocks: Sequence[Block]) -> Widths | None:
        found = allocate(
            request.allocation, groups, scores, costs, budget, on_unreachable="best", blocks=blocks
        )
        return found.widths if found.reached else None

    if budget.met(costs.at({group.id: group.width for group in groups} | {block.id: 1 for block in blocks})):
        scores, blocks = request.score(groups, worth(groups, costs, budget)), ()  # nothing has to go
    else:
        scores, blocks = request.scored(groups, blocks, worth(groups, costs, budget), solve)
    allocated = allocate(
        request.allocation,
        groups,
        scores,
        costs,
        budget,
        on_unreachable=request.on_unreachable,
        unpruned=counted.unpruned,
        blocks=blocks,
    )
    removed = taken(blocks, allocated.widths)
    kept = choose(groups, scores, allocated.widths)
    return Plan(groups, counted.unpruned, allocated, kept, budget.original, align, removed)


def original_widths(module: nn.Module, original: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """Group id -> how wide the group of ``module`` was in the ``original``: by the layer that makes its channels."""
    now, before = dict(producing_layers(module)), dict(producing_layers(original))
    return {g.id: round(g.width * before.get(g.id, now[g.id]) / now[g.id]) for g in groups if g.id in now}


def full_cost(
    original: nn.Module, model: Model, groups: Sequence[ChannelGroup], widths: Mapping[str, int]
) -> dict[str, float]:
    """What the unpruned model costs; channels are those of the groups, as wide as ``widths`` says they were."""
    channels = sum(widths.get(group.id, group.width) for group in groups)
    return {**count(original, model), "channels": float(channels)}


class Together:
    """Several costs as one; groups that are not named are as wide as they are in ``present``."""

    def __init__(self, parts: Sequence[Costs], present: Mapping[str, int]) -> None:
        self._parts, self._present = parts, present

    def at(self, widths: Mapping[str, int]) -> Cost:
        chosen = {**self._present, **widths}
        return {name: value for part in self._parts for name, value in part.at(chosen).items()}
