"""The prune stage: channels that matter least are cut out of a checkpoint, for good."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Quantity, Ratio, RemainingBytes, RemainingCount
from deploycompress.contracts import Batch, Event, Inputs, Note, Outcome, RunContext, Stage
from deploycompress.errors import ConfigError, StageFailed
from deploycompress.registry import ALLOCATIONS, CRITERIA

if TYPE_CHECKING:
    from torch import nn

    from deploycompress.pruning.budget import Allocated
    from deploycompress.pruning.groups import ChannelGroup, Found

AUTO_ALIGN = 8
TOLERANCE = 1e-3  # of max|y|, pruned against masked
REHEARSED_BATCHES = 2


class Target(StrictModel):
    """What remains of the unpruned model (a share), or an absolute figure; several must all hold."""

    macs: RemainingCount | None = None
    params: RemainingCount | None = None
    size: RemainingBytes | None = None
    ratio: Ratio | None = None  # share of the channels that is removed

    @model_validator(mode="after")
    def _one_at_least(self) -> Target:
        if not any((self.macs, self.params, self.size, self.ratio)):
            raise ValueError("no target is given; give macs, params, size or ratio, such as macs: 50%")
        return self


class Prune(Stage):
    """Widths on an aligned grid, chosen by importance, applied to whole dependency groups."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    libraries = ("torch", "torch-pruning")
    compresses = True

    class Config(StrictModel):
        target: Target
        criterion: str = "taylor"
        criterion_args: dict[str, Any] = {}
        allocation: str = "global"
        align: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"  # widths are multiples of it
        batches: Annotated[int, Field(ge=1)] = 50  # of the training split, to tell importance from
        exclude: tuple[str, ...] = ()  # layers that keep their channels: ["layer4.*"]
        on_unreachable: Literal["fail", "best"] = "fail"

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.pruning.apply import apply
        from deploycompress.pruning.budget import Budget, allocate
        from deploycompress.pruning.costs import WidthCosts, count
        from deploycompress.pruning.discovery import find_groups
        from deploycompress.pruning.groups import choose, on_grid
        from deploycompress.pruning.scores import score

        module, unpruned = checkpoint.load(inputs["source"][0].path, context.model), context.model.build()
        found = find_groups(module, context.model, self.config.exclude)
        original = {g.id: _width(unpruned, g.id) for g in found.groups}
        align = AUTO_ALIGN if self.config.align == "auto" else self.config.align
        groups = on_grid(found.groups, align, original)
        context.emit(_groups_event(found))
        scores = score(
            self._criterion(), module, groups, self._batches(context), context.task, context.model.call
        )
        # Every share is of the model as it is built, also where the source was pruned before.
        whole = {**count(unpruned, context.model), "channels": float(sum(original.values()))}
        allocated = allocate(
            ALLOCATIONS.load(self.config.allocation)(),
            groups,
            scores,
            WidthCosts(module, groups, context.model),
            Budget(self._limits(whole), whole),
            on_unreachable=self.config.on_unreachable,
            unpruned=found.unpruned,
        )
        kept = choose(groups, scores, allocated.widths)
        widths = _widths(module, groups, allocated.widths)
        apply(module, groups, kept)
        realised = count(module, context.model)
        figures = _figures(whole, realised)
        context.emit(_realised_event(figures))
        folder = workdir / "model"
        checkpoint.save(module, folder, context.model)
        validated = {} if context.rehearsal else _validated(module, context)
        return Outcome(
            (Artifact.of("", "checkpoint", folder),),
            figures | validated,
            notes=_notes(allocated, found),
            details={
                "widths": widths,
                "unpruned": [{"layer": u.layer, "reason": u.reason} for u in found.unpruned],
                "align": align,
                "kept": {id: channels.tolist() for id, channels in kept.items()},
                "reached": allocated.reached,
            },
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The stored checkpoint, loaded again, equals the unpruned model with the same channels masked."""
        import torch

        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint
        from deploycompress.model.parity import compare, to_numpy, worst
        from deploycompress.pruning.discovery import trace_groups
        from deploycompress.pruning.masked import masked

        unpruned = checkpoint.load(inputs["source"][0].path, context.model)
        pruned = checkpoint.load(outcome.artifacts[0].path, context.model)
        kept = {id: torch.tensor(channels) for id, channels in outcome.details["kept"].items()}
        groups, _ = trace_groups(unpruned, context.model, self.config.exclude)
        reference = masked(unpruned, [g for g in groups if g.id in kept], kept)
        with torch.no_grad():
            parity = worst(
                [
                    compare(
                        to_numpy(context.model.call(reference, feed)),
                        to_numpy(context.model.call(pruned, feed)),
                    )
                    for feed in parity_feeds(context.model, context.data.loader("val"))
                ]
            )
        if parity.relative > TOLERANCE:
            raise StageFailed(
                f"the pruned model does not equal the unpruned one with the same channels masked: they differ by "
                f"{parity.relative:.2g} of the largest output, expected at most {TOLERANCE}; name the layers to leave "
                "whole with exclude"
            )
        context.emit(
            Event("parity", f"pruned equals masked within {parity.relative:.1e} of the largest output")
        )
        return {"masked_relative": parity.relative}

    # ------------------------------------------------------------ what the configuration means

    def _limits(self, whole: Mapping[str, float]) -> dict[str, float]:
        """Absolute upper limits by figure."""
        target: Target = self.config.target
        given: dict[str, Quantity | None] = {
            "macs": target.macs,
            "params": target.params,
            "size": target.size,
        }
        limits = {
            name: q.value * whole[name] if q.dimension == "percent" else q.value
            for name, q in given.items()
            if q is not None
        }
        if target.ratio is not None:
            limits["channels"] = (1 - target.ratio.value) * whole["channels"]
        return limits

    def _criterion(self) -> Any:
        make = CRITERIA.load(self.config.criterion)
        try:
            return make(**self.config.criterion_args)
        except TypeError as error:
            raise ConfigError(
                f"prune.criterion_args do not fit the criterion {self.config.criterion}: {error}"
            ) from error

    def _batches(self, context: RunContext) -> Iterator[Batch]:
        """Training samples, mixed, so that every batch has most classes."""
        wanted = REHEARSED_BATCHES if context.rehearsal else self.config.batches
        rounds = (context.data.loader("train", epoch=epoch) for epoch in itertools.count())
        endless = itertools.chain.from_iterable(rounds)
        return itertools.islice(endless, wanted)


def _notes(allocated: Allocated, found: Found) -> tuple[Note, ...]:
    notes = [Note("left_whole", u.reason, u.layer) for u in found.unpruned]
    if not allocated.reached:
        notes.append(Note("warning", f"the target is out of reach: the smallest is {allocated.shortfall}"))
    return tuple(notes)


def _validated(module: nn.Module, context: RunContext) -> dict[str, float]:
    from deploycompress.recovery.evaluation import evaluate

    figures, _ = evaluate(module, context.model, context.data.loader("val"), context.task)
    return {f"val_{name}": value for name, value in figures.items()}


def _figures(whole: Mapping[str, float], realised: Mapping[str, float]) -> dict[str, float]:
    return {
        "macs": realised["macs"],
        "macs_ratio": realised["macs"] / max(1.0, whole["macs"]),
        "params": realised["params"],
        "params_ratio": realised["params"] / max(1.0, whole["params"]),
    }


def _width(module: nn.Module, layer: str) -> int:
    from deploycompress.pruning.layers import Layer, describe

    described = describe(module.get_submodule(layer))
    assert isinstance(described, Layer), described
    return described.widths["out"]


def _widths(
    module: nn.Module, groups: Sequence[ChannelGroup], planned: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Every convolution and linear layer whose outputs are in a group, with its width before and after."""
    from deploycompress.pruning.discovery import producing_layers

    lost: dict[str, int] = {}
    for group in groups:
        for member in group.members:
            if member.axis == "out":
                each = len(member.positions) // group.width
                lost[member.layer] = lost.get(member.layer, 0) + each * (group.width - planned[group.id])
    return [
        {"layer": name, "before": width, "after": width - lost[name]}
        for name, width in producing_layers(module)
        if name in lost
    ]


def _groups_event(found: Found) -> Event:
    whole = f", {len(found.unpruned)} layers left whole" if found.unpruned else ""
    channels = sum(g.width for g in found.groups)
    figures = {"groups": float(len(found.groups)), "left_whole": float(len(found.unpruned))}
    return Event(
        "decision", f"{len(found.groups)} dependency groups with {channels} channels{whole}", figures
    )


def _realised_event(figures: Mapping[str, float]) -> Event:
    return Event(
        "decision",
        f"kept {figures['macs_ratio']:.1%} of the MACs and {figures['params_ratio']:.1%} of the parameters",
        figures,
    )
