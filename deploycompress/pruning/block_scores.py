"""Losses of blocks beside scores of channels, in one unit, so that the two can compete."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from deploycompress.contracts import Batch, Task
from deploycompress.model.batchnorm import reestimate_batchnorm
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import REESTIMATED, Block, block_losses
from deploycompress.pruning.groups import ChannelGroup, choose
from deploycompress.recovery.evaluation import device_of, mean_loss

MASKED_SHARES = (0.125, 0.25)  # of the channels of every group, to see what the loss really does


def with_blocks(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    task: Task,
    call: Callable[..., Any],
) -> dict[str, Tensor]:
    """``scores`` of the groups in units of the loss, and the loss of every block, [1].

    A score says which of two channels matters more; what a block costs is a rise of the loss. One factor over
    all groups makes the scores that go when a small share of every group is pruned add up to the rise that
    is then seen, batch statistics following in both cases. A block that cannot go has an infinite loss.
    """
    factor = _factor(module, groups, scores, batches, task, call)
    found = {group.id: factor * scores[group.id] for group in groups}
    losses = block_losses(module, blocks, batches, task, call)
    return found | {id: torch.tensor([loss], dtype=torch.float64) for id, loss in losses.items()}


def _factor(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch],
    task: Task,
    call: Callable[..., Any],
) -> float:
    """The loss's rise over the scores that went, at the larger share that leaves the loss finite and higher."""
    before = mean_loss(module, batches, task, call, teacher=module)
    device = device_of(module)
    factor = 1.0
    for share in MASKED_SHARES:
        widths = {g.id: min(g.grid, key=lambda w, g=g: abs(w - (1 - share) * g.width)) for g in groups}  # type: ignore[misc]
        kept = choose(groups, scores, widths)
        gone = sum(float(scores[id].sum() - scores[id][channels].sum()) for id, channels in kept.items())
        if gone <= 0:
            continue
        pruned = copy.deepcopy(module)
        apply(pruned, groups, kept)
        reestimate_batchnorm(pruned, (b.to(device).inputs for b in islice(batches, REESTIMATED)), call)
        rise = mean_loss(pruned, batches, task, call, teacher=module) - before
        if math.isfinite(rise) and rise > 0:
            factor = rise / gone
    return factor
