"""What pruning each group and removing each block costs the loss, in one unit, so that all of them can compete."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Task
from deploycompress.devices.jobs import Progress
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import Block, block_losses, taken
from deploycompress.pruning.context import Rise, Widths
from deploycompress.pruning.effort import affordable, plans, tried_widths
from deploycompress.pruning.groups import ChannelGroup, Kept, choose
from deploycompress.pruning.rises import RecoveredRises, Rises

FORBIDDING = 1e3  # times the largest rise: a width at which the loss is not finite
EVEN = 0.5  # of a rise, that does not follow the scores: on MobileNetV1 it rises from the first channel on
NOTHING = 1e-12  # of a group's scores
LEAST_FACTOR = 0.1  # of the groups' median factor: a rise that was not seen is no proof that there is none


@dataclass(frozen=True)
class Losses:
    """Scores of groups by channel and of blocks, [1], in units of the loss of a sample.

    ``of_plan``: the same for widths of all of them together, measured; ``rounds`` of that are within the budget.
    """

    scores: dict[str, Tensor]
    of_plan: Rise
    rounds: int


def in_loss(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    task: Task,
    model: Model,
    progress: Progress = lambda done, message: None,
) -> Losses:
    """``scores`` of the groups in units of the loss, and the loss of every block, [1].

    A score says which of two channels of a group matters more. What many of them cost together it does not say:
    on MobileNetV1 the sums of Fisher's scores were twenty times too low for the last group against the first. So
    a quarter, a half and three quarters of each group alone are pruned, recovered a little, and its scores scaled
    so that those that go add up to the rise of the loss that is seen; their order stays. Blocks are judged alike.
    What a large model leaves out of it, ``effort`` says. A block that cannot go has an infinite loss.
    """
    effort = affordable(module, groups, blocks, batches, model)
    rises = (RecoveredRises if effort.recovered else Rises)(
        module, effort.fitting, effort.judging, task, model
    )
    trials = {g.id: tried_widths(g, effort.shares) for g in groups}
    most = len(blocks) + sum(map(len, trials.values())) + plans(groups, blocks, effort.rounds)
    number = itertools.count()

    def trial(changed: nn.Module, cut: Sequence[ChannelGroup] = (), kept: Kept | None = None) -> float:
        done = next(number)
        progress(done / most, f"trial {done + 1} of at most {most}")
        return rises.of(changed, cut, kept)

    if isinstance(rises, RecoveredRises) and (tried := [g for g in groups if trials[g.id]]):
        group = tried[len(tried) // 2]
        _, untrained = rises.find_rate(*_without(module, group, scores, trials[group.id][-1]))
        if untrained:
            progress(0.0, f"trials are not trained, only fitted: {untrained}")
    seen = {
        group.id: {width: trial(*_without(module, group, scores, width)) for width in trials[group.id]}
        for group in groups
    }
    finite = [rise for rises_of_one in seen.values() for rise in rises_of_one.values() if math.isfinite(rise)]
    forbidding = FORBIDDING * max((1.0, *finite))
    parts = {
        group.id: _parts(
            group,
            _amounts(scores[group.id]),
            {width: r if math.isfinite(r) else forbidding for width, r in seen[group.id].items()},
        )
        for group in groups
    }
    known = [factor for found in parts.values() if found for factor in _factors(found) if factor > 0]
    usual = median(known) if known else 1.0
    found = {g.id: _scaled(g, scores[g.id], parts[g.id], usual) for g in groups}
    for id, loss in block_losses(module, blocks, trial).items():
        found[id] = torch.tensor([loss], dtype=torch.float64)

    def of_plan(widths: Widths) -> float:
        changed, kept = copy.deepcopy(module), choose(groups, scores, widths)
        apply(changed, groups, kept, taken(blocks, widths))
        return trial(changed, groups, kept)

    return Losses(found, of_plan, effort.rounds)


def _without(
    module: nn.Module, group: ChannelGroup, scores: Mapping[str, Tensor], width: int
) -> tuple[nn.Module, list[ChannelGroup], Kept]:
    """A copy that has the ``width`` best channels of ``group``, with what was done to it."""
    pruned, kept = copy.deepcopy(module), choose([group], scores, {group.id: width})
    apply(pruned, [group], kept)
    return pruned, [group], kept


@dataclass(frozen=True)
class _Part:
    """Channels that go between one tried width and the next, and what the loss rose by meanwhile."""

    channels: Tensor
    lost: float  # sum of their scores
    risen: float


def _amounts(scores: Tensor) -> Tensor:
    """The same order without a negative; ones where nothing is above another, as for channels that nothing reads."""
    amounts = scores - scores.min().clamp(max=0)
    return amounts if float(amounts.sum()) > 0 else torch.ones_like(amounts)


def _parts(group: ChannelGroup, scores: Tensor, rises: Mapping[int, float]) -> list[_Part]:
    """From the widest of the tried widths to the narrowest; a rise never falls from one to the next."""
    parts, wider, risen = [], torch.arange(group.width), 0.0
    for width, rise in rises.items():
        kept = group.keep(scores, width)
        channels = wider[~torch.isin(wider, kept)]
        lost = max(float(scores[channels].sum()), float(scores.sum()) * NOTHING)
        parts.append(_Part(channels, lost, max(0.0, rise - risen)))
        wider, risen = kept, max(risen, rise)
    return parts


def _factors(parts: Sequence[_Part]) -> list[float]:
    """What the scores of each part have to be multiplied by, to add up to its rise."""
    return _rates([part.lost for part in parts], parts)


def _rates(amounts: Sequence[float], parts: Sequence[_Part]) -> list[float]:
    """The rise of each part per amount, never falling.

    Else less important channels would become the more important ones. Where rises want that, neighbours share one
    rate (isotonic regression), and add up to what both of them cost.
    """
    weights = np.array(amounts, dtype=np.float64)
    return list(isotonic_regression(np.array([p.risen for p in parts]) / weights, weights=weights).x.tolist())


def _scaled(group: ChannelGroup, scores: Tensor, parts: Sequence[_Part], usual: float) -> Tensor:
    """Half of a part's rise goes to its channels by their scores, half evenly; those never tried are as the last part.

    None is far below what is ``usual``, and all are that where nothing was seen. Within a segment their order stays.
    """
    if not parts:
        return scores * usual
    if float(scores.max()) <= 0:
        usual = 0.0  # no loss is in them, and ones in their place are in another unit than what is usual
    scores = _amounts(scores)
    scaled, rest = scores.clone(), torch.ones(group.width, dtype=torch.bool)
    even = _rates([len(part.channels) for part in parts], parts)
    for part, rate, factor in zip(parts, even, _factors(parts), strict=True):
        by_score = max(factor, LEAST_FACTOR * usual)
        scaled[part.channels] = EVEN * rate + (1 - EVEN) * by_score * scores[part.channels]
        rest[part.channels] = False
    scaled[rest] = EVEN * rate + (1 - EVEN) * by_score * scores[rest]
    return scaled
