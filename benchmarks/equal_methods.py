"""Ways to prune a network to a latency, each of which measures until it is there."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from equal_search import LEAST, Pruned, Setting, searched, widths_of
from torch import Tensor, nn

from deploycompress.contracts import Batch, Event, Outputs
from deploycompress.data.tasks.classification import Classification
from deploycompress.pruning.allocations.latency import Latency
from deploycompress.pruning.allocations.uniform import Uniform
from deploycompress.pruning.apply import apply
from deploycompress.pruning.blocks import Block
from deploycompress.pruning.budget import Budget, allocate, worth
from deploycompress.pruning.costs import WidthCosts
from deploycompress.pruning.criteria.fisher import Fisher
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.effort import BATCHES
from deploycompress.pruning.groups import ChannelGroup, choose, on_grid
from deploycompress.pruning.latency.bench import Bench
from deploycompress.pruning.latency.planning import plan_by_measuring
from deploycompress.pruning.losses import Losses, in_loss
from deploycompress.pruning.planning import Plan, Request, ToLosses
from deploycompress.pruning.scores import score
from deploycompress.pruning.target import Target
from deploycompress.recovery.repair import repair

AIM = 0.985  # of the target, where a search goes that knows how far off it was
REPAIR_BATCHES = 16  # as in the prune stage
AGAIN = 3  # times that our planner is asked for a corrected target


# ---------------------------------------------------------------- ours


def ours(setting: Setting, align: int) -> Pruned:
    """As the prune stage does it: scores in units of the loss, blocks beside widths, weights fitted without training."""

    known: dict[tuple[str, ...], Losses] = {}

    def to_losses(
        groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], blocks: Sequence[Block]
    ) -> Losses:
        key = (*(f"{group.id} {group.grid}" for group in groups), *(block.id for block in blocks))
        if key not in known:
            batches = setting.batches[:BATCHES]
            module = copy.deepcopy(setting.dense)
            known[key] = in_loss(module, groups, scores, blocks, batches, Classification(), setting.model)
        return known[key]

    return _planned(setting, to_losses, align, fitted=True)


def ours_plain(setting: Setting, align: int) -> Pruned:
    """Widths alone, by scores as they are: no block goes, and nothing is fitted."""
    return _planned(setting, None, align, fitted=False)


def _planned(setting: Setting, to_losses: ToLosses | None, align: int, fitted: bool) -> Pruned:
    """The planner settles by measuring; a target that a longer measurement does not confirm is corrected."""
    aim, plans = setting.target, 0
    best: Pruned | None = None
    for _ in range(AGAIN):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(setting.place, setting.store, Path(folder), _say)
            plan = plan_by_measuring(
                _request(setting, Latency(), {"latency": f"{aim:.2%}"}, to_losses, align),
                bench,
            )
        assert plan.figures is not None
        plans += len(plan.figures["plans"])  # type: ignore[arg-type]
        network = copy.deepcopy(setting.dense)
        apply(network, plan.groups, plan.kept, plan.removed)
        latency = setting.stopwatch.thorough(network)
        if fitted:
            network = _fitted(setting, network, plan)
        found = Pruned(network, latency, plans, aim)
        known = best is not None and list(widths_of(network)) == list(widths_of(best.network))
        best = _better(best, found, setting.target)
        if known or LEAST * setting.target <= found.latency.value <= setting.target:
            break
        aim *= AIM * setting.target / found.latency.value
    assert best is not None
    return replace(best, plans=plans)


def _fitted(setting: Setting, network: nn.Module, plan: Plan) -> nn.Module:
    return repair(
        network,
        setting.dense,
        plan.groups,
        plan.kept,
        setting.batches[:REPAIR_BATCHES],
        setting.validation,
        Classification(),
        setting.model,
    ).module


def _better(best: Pruned | None, found: Pruned, target: float) -> Pruned:
    """The slowest within the target, else the fastest."""
    if best is None:
        return found
    inside = [p for p in (best, found) if p.latency.value <= target]
    if inside:
        return max(inside, key=lambda p: p.latency.value)
    return min((best, found), key=lambda p: p.latency.value)


# ---------------------------------------------------------------- uniform


def uniform(setting: Setting, align: int) -> Pruned:
    """The same share of every group's channels, on the same grid and by the same scores."""
    module = copy.deepcopy(setting.dense)
    groups = on_grid(find_groups(module, setting.model).groups, align)
    costs = WidthCosts(module, groups, setting.model)
    macs = costs.at({group.id: group.width for group in groups})
    scores = _scores(setting, module, groups, worth(groups, costs, Budget({"macs": 0.0}, macs)))

    def at(share: float) -> nn.Module:
        budget = Budget({"macs": share * macs["macs"]}, macs)
        found = allocate(Uniform(), groups, scores, costs, budget, on_unreachable="best")
        network = copy.deepcopy(setting.dense)
        apply(network, groups, choose(groups, scores, found.widths))
        return network

    return searched(setting, at)


def _request(
    setting: Setting,
    allocation: Any,
    target: dict[str, str],
    to_losses: ToLosses | None,
    align: int,
) -> Request:
    module = copy.deepcopy(setting.dense)

    return Request(
        module,
        setting.model,
        Target.model_validate(target),
        allocation,
        align,
        (),
        "best",
        lambda groups, worth: _scores(setting, module, groups, worth),
        to_losses,
    )


def _scores(
    setting: Setting, module: nn.Module, groups: Sequence[ChannelGroup], worth: Mapping[str, float]
) -> dict[str, Tensor]:
    key = tuple((group.id, group.width) for group in groups)
    if key not in setting.scores:
        task, call = Classification(), setting.model.call
        setting.scores[key] = score(Fisher(), module, groups, setting.batches, task, call, worth)
    return dict(setting.scores[key])


# ---------------------------------------------------------------- Torch-Pruning


def torch_pruning_global(setting: Setting, criterion: str, round_to: int | None) -> Pruned:
    """Torch-Pruning's own global pruning in one step with its defaults; the classifier is left alone."""
    import torch_pruning

    gradients = _gradients(setting) if criterion == "taylor" else {}

    def at(share: float) -> nn.Module:
        network = copy.deepcopy(setting.dense)
        if criterion == "taylor":
            importance = torch_pruning.importance.GroupTaylorImportance()
        else:
            importance = torch_pruning.importance.GroupMagnitudeImportance()
        pruner = torch_pruning.pruner.BasePruner(
            network,
            setting.model.example(1)["image"],
            importance=importance,
            global_pruning=True,
            pruning_ratio=1 - share,
            round_to=round_to,
            ignored_layers=[m for m in network.modules() if isinstance(m, nn.Linear)],
            in_channel_groups={},  # the defaults are shared and written to
            out_channel_groups={},
            num_heads={},
        )
        for name, gradient in gradients.items():
            network.get_parameter(name).grad = gradient.clone()
        pruner.step()
        network.zero_grad(set_to_none=True)
        return network

    return searched(setting, at)


def _gradients(setting: Setting) -> dict[str, Tensor]:
    """Of the mean loss over the samples that the other methods score on; labels are drawn where there are none."""
    network = copy.deepcopy(setting.dense).eval()
    generator = torch.Generator().manual_seed(0)
    for batch in setting.batches:
        logits = next(iter(setting.model.call(network, batch.inputs).values()))
        labels = batch.targets
        if labels is None:
            labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
        loss = Classification().loss(Outputs({"logits": logits}), Batch({}, labels, len(labels)))
        (loss / len(setting.batches)).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def _say(event: Event) -> None:
    if event.kind != "progress":
        print("   ", event.message, {k: round(v, 4) for k, v in event.figures.items()}, flush=True)
