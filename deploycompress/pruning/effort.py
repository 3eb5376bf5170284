"""How much trial there may be: a budget of multiplications, shared by all groups and blocks that are tried out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deploycompress.contracts import Batch, Model
from deploycompress.pruning.blocks import Block
from deploycompress.pruning.costs import count
from deploycompress.pruning.groups import ChannelGroup
from deploycompress.pruning.rises import COMPENSATED, STEPS
from deploycompress.recovery.evaluation import device_of

PRUNED_SHARES = (0.25, 0.5, 0.75)  # of one group's channels, to see what the loss really does
FEWER_SHARES = (0.5,)  # where three are too many for the budget
WITH_RECOVERY = (
    (PRUNED_SHARES, 3),
    (FEWER_SHARES, 3),
    (FEWER_SHARES, 2),
    (FEWER_SHARES, 0),
)  # the best first
BUDGET_MACS = {"cpu": 2e13, "cuda": 2e15}  # some minutes of each
JUDGING = 8  # batches
BATCHES = JUDGING + STEPS  # a step each
PASSES = 3  # of every batch without recovery: statistics, the loss, and the teacher's answer where there are no labels
STEP_PASSES = 3  # forwards, and backwards for inputs and weights
BARE = 0.5  # of the budget, where nothing is recovered: more samples would tell little more
LEAST_SAMPLES = 32


@dataclass(frozen=True)
class Effort:
    """Which shares of a group's channels are pruned in turn, whether something is recovered, and on which batches.

    ``rounds``: of whole plans with all their changes.
    """

    shares: tuple[float, ...]
    recovered: bool
    rounds: int
    fitting: Sequence[Batch]
    judging: Sequence[Batch]


def affordable(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    model: Model,
) -> Effort:
    """The best that the budget lasts for; ``batches`` for all of it are ``BATCHES``.

    With recovery, ``JUDGING`` of the batches judge, a third of fewer, and the others are fitted to. Without it all of them do both, as many
    as there may be, one at least.
    """
    macs = max(1.0, count(copy.deepcopy(module).to("cpu"), model)["macs"] * _larger(batches, model))
    samples = BUDGET_MACS["cpu" if device_of(module).type == "cpu" else "cuda"] / macs
    judging = min(JUDGING, len(batches) // 3)
    if judging:
        fitting = batches[judging:BATCHES]
        size = sum(b.size for b in batches) / len(batches)
        for shares, rounds in WITH_RECOVERY:
            if size * _recovery_passes(groups, blocks, shares, rounds, len(fitting), judging) <= samples:
                return Effort(shares, True, rounds, fitting, batches[:judging])
    for shares in (PRUNED_SHARES, FEWER_SHARES):
        each = (
            BARE
            * samples
            / (PASSES * max(1, len(blocks) + sum(len(tried_widths(g, shares)) for g in groups)))
        )
        if each >= LEAST_SAMPLES:
            break
    taken: list[Batch] = []
    for batch in batches[:JUDGING]:
        if taken and sum(b.size for b in taken) + batch.size > each:
            break
        taken.append(batch)
    return Effort(shares, False, 0, taken, taken)


def _larger(batches: Sequence[Batch], model: Model) -> float:
    """How much larger a real sample is than the example that is counted, by its numbers; dimensions may have names."""
    if not batches:
        return 1.0
    counted = sum(tensor.numel() for tensor in model.example(1).values())
    return sum(tensor.numel() for tensor in batches[0].inputs.values()) / max(1, batches[0].size) / counted


def tried_widths(group: ChannelGroup, shares: Sequence[float]) -> list[int]:
    """Of the grid, nearest to what the shares leave; falling, without the whole."""
    near = {min(group.grid, key=lambda w, s=s: abs(w - (1 - s) * group.width)) for s in shares}  # type: ignore[misc]
    return sorted(near - {group.width}, reverse=True)


def plans(groups: Sequence[ChannelGroup], blocks: Sequence[Block], rounds: int) -> int:
    """That are tried at most: one a round, and before the last one the same with each part changed."""
    return rounds + max(0, rounds - 1) * (len(groups) + len(blocks))


def _recovery_passes(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    shares: Sequence[float],
    rounds: int,
    fitting: int,
    judging: int,
) -> int:
    """Of a batch, forwards: for each group and block alone, and then for whole plans and their changes.

    Least squares runs two networks up to each layer that reads what was cut: half of their layers, on the whole.
    """
    each = 2 * fitting + STEP_PASSES * STEPS + judging
    readers = {g.id: COMPENSATED * sum(member.axis == "in" for member in g.members) for g in groups}
    alone = each * len(blocks) + sum(len(tried_widths(g, shares)) * (each + readers[g.id]) for g in groups)
    return alone + plans(groups, blocks, rounds) * (each + sum(readers.values()))
