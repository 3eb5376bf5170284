"""What came of a plan: the pruned model held against the masked one, its figures and its notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from deploycompress.contracts import Model, Note
from deploycompress.errors import StageFailed
from deploycompress.model.parity import compare, to_numpy
from deploycompress.pruning.blocks import bypassed
from deploycompress.pruning.costs import Cost
from deploycompress.pruning.masked import masked
from deploycompress.pruning.notes import left_whole
from deploycompress.pruning.planning import Plan

TOLERANCE = 1e-3  # of max|y|: pruned against masked, in float32


def apart_from_masked(
    pruned: nn.Module,
    unpruned: nn.Module,
    plan: Plan,
    model: Model,
    feeds: Sequence[Mapping[str, Tensor]],
) -> float:
    """How far ``pruned`` is from ``unpruned`` with the same channels masked and the same blocks bypassed.

    Relative to the largest output. Raises StageFailed above the tolerance.
    """
    reference = bypassed(masked(unpruned, plan.groups, plan.kept), plan.removed)
    apart = 0.0
    with torch.no_grad():
        for feed in feeds:
            expected, found = (to_numpy(model.call(m, feed)) for m in (reference, pruned))
            apart = max(apart, compare(expected, found).relative)
    if apart > TOLERANCE:
        raise StageFailed(
            f"the pruned model differs from the unpruned model with the same channels masked by {apart:.2g} of the "
            f"largest output, expected at most {TOLERANCE:g}; leave the layers at fault out with exclude, and report this"
        )
    return apart


def shares(cost: Cost, plan: Plan) -> dict[str, float]:
    """MACs and parameters, and their shares of the unpruned model's; a latency as it was measured."""
    figures: dict[str, float] = {}
    for name in ("macs", "params"):
        figures |= {name: cost[name], f"{name}_ratio": cost[name] / max(1.0, plan.original[name])}
    latency_ms = plan.allocated.cost.get("latency")
    if latency_ms is not None:
        figures |= {"latency_ms": latency_ms, "latency_ratio": latency_ms / plan.original["latency"]}
    return figures


def plan_notes(plan: Plan) -> Iterator[Note]:
    """What is left whole, and what else is to be said of the plan."""
    yield from left_whole(plan.unpruned)
    yield from plan.notes
    if plan.removed:
        yield Note("decision", f"blocks taken out: {', '.join(block.id for block in plan.removed)}")
    if not plan.allocated.reached:
        yield Note(
            "warning",
            f"the target is not reached: the least that can be had is {plan.allocated.shortfall}",
        )
    elif not plan.kept and not plan.removed:
        yield Note("decision", "nothing was pruned: the model meets its target as it is")
