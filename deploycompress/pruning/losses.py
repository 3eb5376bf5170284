"""What pruning each group and removing each block costs the loss, in one unit, so that all of them can compete."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import median

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from deploycompress.contracts import Batch, Model, Task
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import REESTIMATED, Block, block_losses
from deploycompress.pruning.costs import count
from deploycompress.pruning.groups import ChannelGroup, choose
from deploycompress.recovery.evaluation import device_of, mean_loss

PRUNED_SHARES = (0.25, 0.5, 0.75)  # of one group's channels, to see what the loss really does
FEWER_SHARES = (0.5,)  # where three are too many for the budget
BUDGET_MACS = 1e13  # of all forward passes together
PASSES = 3  # of every batch: statistics, the loss, and the teacher's answer where there are no labels
LEAST_SAMPLES = 32
LEAST_FACTOR = 0.1  # of the groups' median factor: a rise that was not seen is no proof that there is none


def in_loss(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    task: Task,
    model: Model,
) -> dict[str, Tensor]:
    """``scores`` of the groups in units of the loss, and the loss of every block, [1].

    A score says which of two channels of a group matters more. What many of them cost together it does not say:
    on MobileNetV1 the sums of Fisher's scores were twenty times too low for the last group against the first. So
    a quarter, a half and three quarters of each group alone are pruned, batch statistics following, and its scores
    scaled so that those that go add up to the rise of the loss that is seen; their order stays. A large model has
    fewer samples of that, and then only the half; blocks are judged on the same samples. A block that cannot go has an infinite loss.
    """
    shares, few = _affordable(module, groups, blocks, batches, model)
    found = _calibrated(module, groups, scores, shares, few, task, model)
    losses = block_losses(module, blocks, few, task, model.call)
    return found | {id: torch.tensor([loss], dtype=torch.float64) for id, loss in losses.items()}


def _calibrated(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    shares: Sequence[float],
    batches: Sequence[Batch],
    task: Task,
    model: Model,
) -> dict[str, Tensor]:
    before = mean_loss(module, batches, task, model.call, teacher=module)
    device = device_of(module)

    def rise(group: ChannelGroup, width: int) -> float:
        pruned = copy.deepcopy(module)
        apply(pruned, [group], choose([group], scores, {group.id: width}))
        reestimate_batchnorm(pruned, (b.to(device).inputs for b in islice(batches, REESTIMATED)), model.call)
        return mean_loss(pruned, batches, task, model.call, teacher=module) - before

    factors = {}
    for group in groups:
        seen = {width: rise(group, width) for width in _widths(group, shares)}
        factors[group.id] = _factors(
            group, scores[group.id], {w: r for w, r in seen.items() if math.isfinite(r)}
        )
    known = [f for found in factors.values() for f in found.values() if f > 0]
    usual = median(known) if known else 1.0
    return {g.id: _scaled(g, scores[g.id], factors[g.id], usual) for g in groups}


def _affordable(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    model: Model,
) -> tuple[tuple[float, ...], Sequence[Batch]]:
    """Shares to prune of each group, and the batches to try it on: as many as the budget lasts for, one at least."""
    macs = max(1.0, count(copy.deepcopy(module).to("cpu"), model)["macs"])
    for shares in (PRUNED_SHARES, FEWER_SHARES):
        trials = len(blocks) + sum(len(_widths(group, shares)) for group in groups)
        samples = BUDGET_MACS / (macs * PASSES * max(1, trials))
        if samples >= LEAST_SAMPLES:
            break
    taken: list[Batch] = []
    for batch in batches:
        if taken and sum(b.size for b in taken) + batch.size > samples:
            break
        taken.append(batch)
    return shares, taken


def _widths(group: ChannelGroup, shares: Sequence[float]) -> list[int]:
    """Of the grid, nearest to what the shares leave; falling, without the whole."""
    near = {min(group.grid, key=lambda w, s=s: abs(w - (1 - s) * group.width)) for s in shares}  # type: ignore[misc]
    return sorted(near - {group.width}, reverse=True)


def _factors(group: ChannelGroup, scores: Tensor, rises: Mapping[int, float]) -> dict[int, float]:
    """Width -> what the scores of the channels that go on the way to it have to be multiplied by.

    Factors do not fall with the width: less important channels would become the more important ones. Where the
    rises want that, neighbours share one factor (isotonic regression), and add up to what both of them cost.
    """
    widths, sums, parts = [], [], []
    total, gone, risen = float(scores.sum()), 0.0, 0.0
    for width, rise in rises.items():
        lost = total - float(scores[group.keep(scores, width)].sum())
        if lost > gone:
            widths.append(width)
            sums.append(lost - gone)
            parts.append(max(0.0, rise - risen))
            gone, risen = lost, max(risen, rise)
    if not widths:
        return {}
    weights = np.array(sums)
    found = isotonic_regression(np.array(parts) / weights, weights=weights).x
    return dict(zip(widths, found.tolist(), strict=True))


def _scaled(group: ChannelGroup, scores: Tensor, factors: Mapping[int, float], usual: float) -> Tensor:
    """Each part of the channels by its own factor, the rest as the last; none far below what is ``usual``."""
    scaled = scores.clone()
    wider, factor = torch.arange(group.width), usual
    for width, found in factors.items():
        kept = group.keep(scores, width)
        factor = max(found, LEAST_FACTOR * usual)
        part = wider[~torch.isin(wider, kept)]
        scaled[part] = scores[part] * factor
        wider = kept
    scaled[wider] = scores[wider] * factor
    return scaled
