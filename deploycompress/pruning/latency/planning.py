"""A plan for a latency target: widths solved on predicted latencies and settled on measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from deploycompress.contracts import Note
from deploycompress.errors import StageFailed
from deploycompress.model.passthrough import taken_out
from deploycompress.pruning.blocks import Block
from deploycompress.pruning.budget import Allocated, Budget, allocate, smallest_widths, worth
from deploycompress.pruning.costs import WidthCosts
from deploycompress.pruning.discovery import find_groups, producing_layers
from deploycompress.pruning.groups import ChannelGroup, Unpruned, choose
from deploycompress.pruning.latency.bench import Bench
from deploycompress.pruning.latency.fitted import Fitted, fitted_costs
from deploycompress.pruning.latency.prediction import Widths
from deploycompress.pruning.latency.settling import Settled, settle
from deploycompress.pruning.latency.whole import WholeModels
from deploycompress.pruning.planning import Plan, Request, Together, full_cost, taken

LATENCY = "latency"
WARNED_ERROR = 0.1  # of the prediction, on models it was not fitted to; the truth loop corrects what is left


def plan_by_measuring(request: Request, bench: Bench) -> Plan:
    """For a target with a latency in it; what else it asks for holds too.

    Raises StageFailed when nothing that was measured meets it, unless the best is wanted.
    """
    model, module = request.model, request.module
    original = model.build()
    whole_groups = find_groups(original, model, request.exclude).groups
    whole_blocks = request.blocks(original, whole_groups)
    fitted = fitted_costs(original, model, whole_groups, whole_blocks, request.align, bench)
    bench.say("latency table measured, prediction fitted", fitted.figures)
    found = find_groups(module, model, request.exclude)
    groups = _on_grids_of(fitted.groups, found.groups)
    blocks = [block for block in request.blocks(module, groups) if block.id in {b.id for b in whole_blocks}]
    present = {group.id: group.width for group in (*fitted.groups, *groups)}
    present |= dict.fromkeys(taken_out(module), 0)
    costs = Together([WidthCosts(module, groups, model, blocks), fitted.costs], present)
    widths = dict(producing_layers(original))
    unpruned_ms = fitted.costs.latency_ms({group.id: group.width for group in fitted.groups})
    full = {**full_cost(original, model, groups, widths), LATENCY: unpruned_ms}
    limits = request.target.limits(full)
    scores = request.score(groups, worth(groups, costs, Budget(limits, full)))
    if request.score_blocks is not None and blocks:
        scores = request.score_blocks(groups, scores, blocks)
    smallest = smallest_widths(groups, blocks)
    others = Budget({name: limit for name, limit in limits.items() if name != LATENCY}, full)
    if not others.met(costs.at(smallest)):  # says what cannot be reached, or takes the smallest
        least = allocate(
            request.allocation,
            groups,
            scores,
            costs,
            others,
            on_unreachable=request.on_unreachable,
            unpruned=found.unpruned,
            blocks=blocks,
        )
        return _plan(groups, blocks, found.unpruned, least, scores, full, fitted, {})
    whole = WholeModels(
        original, module, model, groups, blocks, bench.place, bench.workdir, bench.progress, unpruned_ms
    )

    def within(limit_ms: float) -> Widths | None:
        budget = Budget({**others.limits, LATENCY: limit_ms}, full)
        if not budget.met(costs.at(smallest)):
            return None
        return allocate(request.allocation, groups, scores, costs, budget, blocks=blocks).widths

    def limit_ms() -> float:
        return request.target.latency_ms(whole.unpruned_ms)

    settled = settle(
        whole,
        within,
        predict=lambda widths: costs.at(widths)[LATENCY],
        loss=lambda widths: _lost(groups, blocks, scores, widths),
        smallest=smallest,
        limit_ms=limit_ms,
        say=bench.say,
    )
    if not settled.reached and request.on_unreachable == "fail":
        raise StageFailed(_unreachable(settled, limit_ms(), groups, found.unpruned))
    chosen = settled.chosen
    cost = {**costs.at(chosen.widths), LATENCY: chosen.latency_ms}
    shortfall = (
        "" if settled.reached else f"latency {_of(chosen.latency_ms, settled.unpruned_ms, limit_ms())}"
    )
    allocated = Allocated(chosen.widths, cost, settled.reached, shortfall)
    full[LATENCY] = settled.unpruned_ms
    return _plan(
        groups, blocks, found.unpruned, allocated, scores, full, fitted, _figures(settled, limit_ms())
    )


def _plan(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    unpruned: Sequence[Unpruned],
    allocated: Allocated,
    scores: Mapping[str, Tensor],
    full: Mapping[str, float],
    fitted: Fitted,
    figures: Mapping[str, Any],
) -> Plan:
    notes = list(fitted.notes)
    if fitted.error > WARNED_ERROR:
        notes.append(
            Note(
                "warning",
                f"the predicted latency is up to {fitted.error:.0%} off for models it was not fitted to; "
                "the plan was settled on measured ones",
            )
        )
    return Plan(
        tuple(groups),
        tuple(unpruned),
        allocated,
        choose(groups, scores, allocated.widths),
        full,
        fitted.align,
        taken(blocks, allocated.widths),
        {**figures, "prediction": dict(fitted.figures)},
        tuple(notes),
    )


def _on_grids_of(
    original: Sequence[ChannelGroup], groups: Sequence[ChannelGroup]
) -> tuple[ChannelGroup, ...]:
    """The same few widths as the unpruned model's groups have, as far as these go."""
    grids = {group.id: group.grid for group in original}
    return tuple(replace(g, grid=(*(w for w in grids.get(g.id, ()) if w < g.width), g.width)) for g in groups)


def _lost(
    groups: Sequence[ChannelGroup], blocks: Sequence[Block], scores: Mapping[str, Tensor], widths: Widths
) -> float:
    """Importance of the channels and blocks that go."""
    channels = sum(
        float(scores[g.id].sum() - scores[g.id][g.keep(scores[g.id], widths[g.id])].sum())
        for g in groups
        if widths[g.id] > 0
    )
    return channels + sum(float(scores[block.id].sum()) for block in taken(blocks, widths))


def _of(latency_ms: float, unpruned_ms: float, limit_ms: float) -> str:
    return (
        f"{latency_ms:.3g} ms, {latency_ms / unpruned_ms:.1%} of the unpruned model's {unpruned_ms:.3g} ms "
        f"(target {limit_ms:.3g} ms, {limit_ms / unpruned_ms:.1%})"
    )


def _unreachable(
    settled: Settled, limit_ms: float, groups: Sequence[ChannelGroup], unpruned: Sequence[Unpruned]
) -> str:
    whole = f" and {len(unpruned)} layers left whole" if unpruned else ""
    return (
        f"the latency target cannot be reached: of {len(settled.tried)} plans that were measured the fastest takes "
        f"{_of(settled.chosen.latency_ms, settled.unpruned_ms, limit_ms)}, with {len(groups)} groups to choose from"
        f"{whole}. Raise the target, or set on_unreachable: best"
    )


def _figures(settled: Settled, limit_ms: float) -> dict[str, Any]:
    return {
        "unit": "ms",
        "unpruned": settled.unpruned_ms,
        "target": limit_ms,
        "measured": settled.chosen.latency_ms,
        "plans": [{"predicted": t.predicted_ms, "measured": t.latency_ms} for t in settled.tried],
    }
