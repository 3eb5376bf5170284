"""A plan for a latency target: widths solved on predicted latencies and settled on measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from deploycompress.contracts import Note
from deploycompress.errors import StageFailed
from deploycompress.model.passthrough import taken_out
from deploycompress.pruning.blocks import Block, taken
from deploycompress.pruning.budget import (
    Allocated,
    Budget,
    allocate,
    give_back,
    out_of_reach,
    smallest_widths,
    step_loss,
    unreachable,
    worth,
)
from deploycompress.pruning.context import Scores, lost
from deploycompress.pruning.costs import WidthCosts
from deploycompress.pruning.discovery import find_groups
from deploycompress.pruning.groups import ChannelGroup, Unpruned, choose
from deploycompress.pruning.latency.bench import Bench
from deploycompress.pruning.latency.fitted import Fitted, fitted_costs
from deploycompress.pruning.latency.prediction import Widths
from deploycompress.pruning.latency.settling import AIM, CLOSE, Settled, measure_alone, settle
from deploycompress.pruning.latency.whole import WholeModels
from deploycompress.pruning.planning import Plan, Request, Together, full_cost, original_widths

LATENCY = "latency"
WARNED_ERROR = 0.1  # of the prediction, on models it was not fitted to; the truth loop corrects what is left


def plan_by_measuring(request: Request, bench: Bench) -> Plan:
    """For a target with a latency in it; what else it asks for holds too.

    Raises StageFailed when nothing that was measured meets it, unless the best is wanted.
    """
    model, module = request.model, request.module
    original = model.build()
    found = find_groups(module, model, request.exclude)
    basis = find_groups(original, model, request.exclude)
    known = {group.id for group in basis.groups}
    if any(group.id not in known for group in found.groups):  # it has layers that a fresh build has not
        whole, basis = module, found
    else:
        whole = original
    whole_blocks = request.blocks(whole, basis.groups)
    fitted = fitted_costs(whole, model, basis.groups, whole_blocks, request.align, bench)
    bench.say("latency table measured, prediction fitted", fitted.figures)
    groups = _on_grids_of(fitted.groups, found.groups)
    known_blocks = {block.id for block in whole_blocks}
    blocks = tuple(block for block in request.blocks(module, groups) if block.id in known_blocks)
    present = {group.id: group.width for group in (*fitted.groups, *groups)}
    present |= dict.fromkeys(taken_out(module), 0)
    costs = Together([WidthCosts(module, groups, model, blocks), fitted.costs], present)
    widths = original_widths(module, original, groups)
    predicted_ms = fitted.costs.latency_ms({group.id: group.width for group in fitted.groups})
    full = {**full_cost(original, model, groups, widths), LATENCY: predicted_ms}
    limits = request.target.limits(full)
    others = Budget({name: limit for name, limit in limits.items() if name != LATENCY}, full)

    def solve(scores: Scores, blocks: Sequence[Block], share: float) -> Widths | None:
        """Within ``share`` of the unpruned model's latency, by prediction."""
        budget = Budget({**others.limits, LATENCY: share * predicted_ms}, full)
        if not budget.met(costs.at(smallest_widths(groups, blocks))):
            return None
        return allocate(request.allocation, groups, scores, costs, budget, blocks=blocks).widths

    aim = AIM * limits[LATENCY] / predicted_ms
    least = costs.at(smallest_widths(groups, blocks))
    if request.on_unreachable == "fail" and (early := out_of_reach(groups, least, others)):
        raise StageFailed(unreachable(early, groups, found.unpruned))  # before anything is tried
    scores, blocks = request.scored(
        groups,
        blocks,
        worth(groups, costs, Budget(limits, full)),
        lambda scores, blocks: solve(scores, blocks, aim),
    )
    smallest = smallest_widths(groups, blocks)
    out_of_others = out_of_reach(groups, costs.at(smallest), others)
    if out_of_others and request.on_unreachable == "fail":
        raise StageFailed(unreachable(out_of_others, groups, found.unpruned))
    measured = WholeModels(
        original, module, model, groups, blocks, bench.place, bench.workdir, bench.progress, predicted_ms
    )

    def widen(plan: Widths, limit: float) -> Widths:
        budget = Budget({**others.limits, LATENCY: limit * predicted_ms}, full)
        kept = [group for group in groups if plan[group.id] > 0]
        return give_back(
            kept, plan, costs, budget, lambda group, wider: _gained(group, scores[group.id], wider)
        )

    def limit() -> float:
        return request.target.latency_ms(measured.unpruned_ms) / measured.unpruned_ms

    def predict(widths: Widths) -> float:
        return costs.at(widths)[LATENCY] / predicted_ms

    if out_of_others:
        settled = measure_alone(measured, smallest, predict)
    else:
        settled = settle(
            measured,
            lambda share: solve(scores, blocks, share),
            widen,
            predict=predict,
            loss=lambda widths: lost(groups, blocks, scores, widths),
            smallest=smallest,
            limit=limit,
            say=bench.say,
        )
    if not settled.reached and request.on_unreachable == "fail":
        raise StageFailed(_unreachable(settled, limit(), groups, found.unpruned))
    chosen = settled.chosen
    cost = {**costs.at(chosen.widths), LATENCY: chosen.ratio * settled.unpruned_ms}
    shortfall = "" if settled.reached else out_of_others or f"latency {_of(settled, limit())}"
    allocated = Allocated(chosen.widths, cost, settled.reached, shortfall)
    full[LATENCY] = settled.unpruned_ms
    plan = _plan(groups, blocks, found.unpruned, allocated, scores, full, fitted, _figures(settled, limit()))
    note = far_below(settled, limit()) if plan.kept or plan.removed else None
    return replace(plan, notes=(*plan.notes, note)) if note else plan


def far_below(settled: Settled, limit: float) -> Note | None:
    """What is to be said of a plan that is within the target and more than 3 % below it."""
    below = settled.chosen.ratio / limit
    if not settled.reached or below >= CLOSE:
        return None
    return Note(
        "warning",
        f"the latency is {1 - below:.0%} below its target, which cost accuracy: none of {len(settled.tried)} plans that "
        "were measured is nearer; the grid of widths, or another limit, leaves nothing between",
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
    return tuple(
        replace(g, grid=(*(w for w in grids.get(g.id, ()) if w < g.width and w % g.step == 0), g.width))
        for g in groups
    )


def _gained(group: ChannelGroup, scores: Tensor, wider: int) -> float:
    """Importance that comes back with the last step of the grid up to ``wider``."""
    return step_loss(group, scores, max(width for width in group.grid if width < wider), wider)


def _of(settled: Settled, limit: float) -> str:
    ratio, unpruned_ms = settled.chosen.ratio, settled.unpruned_ms
    return (
        f"{ratio * unpruned_ms:.3g} ms, {ratio:.1%} of the unpruned model's {unpruned_ms:.3g} ms "
        f"(target {limit * unpruned_ms:.3g} ms, {limit:.1%})"
    )


def _unreachable(
    settled: Settled, limit: float, groups: Sequence[ChannelGroup], unpruned: Sequence[Unpruned]
) -> str:
    whole = f" and {len(unpruned)} layers left whole" if unpruned else ""
    return (
        f"the latency target cannot be reached: of {len(settled.tried)} plans that were measured the fastest takes "
        f"{_of(settled, limit)}, with {len(groups)} groups to choose from{whole}. "
        "Raise the target, or set on_unreachable: best"
    )


def _figures(settled: Settled, limit: float) -> dict[str, Any]:
    unpruned_ms = settled.unpruned_ms
    return {
        "unit": "ms",
        "unpruned": unpruned_ms,
        "target": limit * unpruned_ms,
        "measured": settled.chosen.ratio * unpruned_ms,
        "plans": [
            {
                "predicted": t.predicted * unpruned_ms,
                "measured": t.ratio * unpruned_ms,
                "confirmed": t.confirmed,
            }
            for t in settled.tried
        ],
        "measured_while_slowed": settled.slowed,
    }
