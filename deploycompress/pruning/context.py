"""What groups and blocks cost beside one another: losses seen alone, corrected by the loss of whole plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

from torch import Tensor

from deploycompress.pruning.blocks import Block, taken
from deploycompress.pruning.budget import step_loss
from deploycompress.pruning.groups import ChannelGroup

CHANGED = 0.75  # of a group's width: one that is wider is cut to it, one that is narrower is made whole
CERTAIN = 0.5  # of the usual difference: one far below it says little, and its factor stays near 1

Widths = Mapping[str, int]
Scores = Mapping[str, Tensor]
Solve = Callable[[Scores], Widths | None]  # the plan that loses least, None: there is none
Rise = Callable[[Widths], float]  # of the loss, for a whole plan


def in_context(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    scores: Scores,
    solve: Solve,
    rise: Rise,
    rounds: int,
) -> dict[str, Tensor]:
    """``scores``, in units of the loss, each group's and block's times a factor: the best plan's of a few rounds.

    Losses do not add up: a layer that comes after others that were cut has less to lose, or more. So the plan that
    loses least by single losses is tried, and beside it the same with each group and block changed in turn; what
    this changes of the loss, over what it should have, is the next round's factor. The best of the plans that were
    tried is the one whose factors stay.
    After the last of the ``rounds`` nothing is changed any more.
    """
    factors = {id: 1.0 for id in scores}
    best: tuple[float, dict[str, Tensor]] = math.inf, dict(scores)
    plans: list[dict[str, int]] = []
    for number in range(rounds):
        corrected = {id: factors[id] * score for id, score in scores.items()}
        plan = solve(corrected)
        if plan is None or dict(plan) in plans:
            break
        plans.append(dict(plan))
        risen = rise(plan)
        if risen < best[0]:
            best = risen, corrected
        if number == rounds - 1 or not math.isfinite(risen):
            break
        # Halfway to what was seen, or plans would swing from one to the other.
        for id, ratio in _ratios(groups, blocks, scores, plan, risen, rise).items():
            factors[id] = math.sqrt(factors[id] * ratio)
    return best[1]


def lost(groups: Sequence[ChannelGroup], blocks: Sequence[Block], scores: Scores, widths: Widths) -> float:
    """The scores of the channels and blocks that go, added up."""
    channels = sum(step_loss(g, scores[g.id], widths[g.id], g.width) for g in groups if widths[g.id] > 0)
    return channels + sum(float(scores[block.id].sum()) for block in taken(blocks, widths))


def _ratios(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    scores: Scores,
    plan: Widths,
    risen: float,
    rise: Rise,
) -> dict[str, float]:
    """Group or block -> by what its change changes the loss of ``plan``, over what its scores say."""
    before = lost(groups, blocks, scores, plan)
    said, seen = {}, {}
    for id, change in _changes(groups, blocks, plan):
        difference = lost(groups, blocks, scores, change) - before
        away = 1 if any(change[other] < width for other, width in plan.items()) else -1
        if away * difference <= 0:
            continue  # a block that loses less than the channels inside it do
        found = away * (rise(change) - risen)
        if math.isfinite(found):
            said[id], seen[id] = away * difference, max(0.0, found)
    usual = CERTAIN * median(said.values()) if said else 0.0
    return {id: (seen[id] + usual) / (said[id] + usual) for id in said}


def _changes(
    groups: Sequence[ChannelGroup], blocks: Sequence[Block], plan: Widths
) -> Iterator[tuple[str, dict[str, int]]]:
    """``plan`` with one group, or one block with all that is inside it, changed far enough to be seen."""
    for group in groups:
        width = plan[group.id]
        if width == 0 or group.width == group.grid[0]:
            continue  # it went with its block, or there is no other width
        narrower = [w for w in group.grid if w < group.width]
        cut = min(narrower, key=lambda w, g=group: abs(w - CHANGED * g.width))  # type: ignore[misc]
        yield group.id, {**plan, group.id: cut if width > cut else group.width}
    whole = {group.id: group.width for group in groups}
    for block in blocks:
        if plan[block.id] == 0:
            yield block.id, {**plan, block.id: 1, **{id: whole[id] for id in block.groups if id in whole}}
        else:
            yield block.id, {**plan, block.id: 0, **{id: 0 for id in block.groups if id in whole}}
