"""The prune stage: channels that matter least are cut out until the model meets its target."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from deploycompress.artifact import Artifact, read_json, write_json
from deploycompress.config.base import StrictModel
from deploycompress.contracts import Batch, Criterion, Event, Inputs, Note, Outcome, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.pruning.target import Target
from deploycompress.registry import ALLOCATIONS, CRITERIA, RUNTIMES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.costs import Cost
    from deploycompress.pruning.groups import ChannelGroup, Unpruned
    from deploycompress.pruning.planning import Plan

KEPT = "kept.json"
REHEARSAL_BATCHES = 2
TOLERANCE = 1e-3  # of max|y|: pruned against masked, in float32


class Prune(Stage):
    """Structured channel pruning over dependency groups, on an aligned grid of widths."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    libraries = ("torch", "torch-pruning", "numpy")
    compresses = True

    class Config(StrictModel):
        target: Target
        criterion: str | dict[str, dict[str, Any]] = Field(
            "fisher", description="A name, or {name: {option: value}}: {magnitude: {norm: l1}}"
        )
        allocation: str | None = Field(
            None,
            description="How the widths are shared out: latency (the default for a latency), global (for all else), "
            "isomorphic, uniform, module:Name",
        )
        align: Literal["auto"] | Annotated[int, Field(ge=1, le=512)] = Field(
            "auto", description="Widths are multiples of it; for a latency, auto is what is measured to pay"
        )
        batches: Annotated[int, Field(ge=1)] = Field(
            50, description="Calibration batches to score channels on, at most"
        )
        exclude: tuple[str, ...] = Field((), description="Layers whose outputs stay, by pattern: layer4.*")
        on_unreachable: Literal["fail", "best"] = "fail"

        @field_validator("criterion")
        @classmethod
        def _criterion_can_be_made(cls, value: str | dict[str, dict[str, Any]]) -> Any:
            name, options = _criterion(value)
            if name in CRITERIA:
                try:
                    CRITERIA.load(name)(**options)
                except TypeError as error:
                    raise ValueError(f"criterion {name}: {error}") from error
            elif ":" not in name:
                raise ValueError(f"unknown criterion {name!r}; known: {', '.join(CRITERIA)}, or module:Name")
            return value

    def reads(self) -> frozenset[str]:
        return frozenset({"target"}) if self.config.target.latency is not None else frozenset()

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        """For a latency the machine that it is measured on."""
        if self.config.target.latency is None:
            return {}
        from deploycompress.pruning.latency.bench import Place

        return {"place": Place.of(context.target).key}

    def requires(self, context: RunContext) -> None:
        if find_spec("torch_pruning") is None:
            raise EnvironmentMissing("prune needs torch-pruning; install with: pip install torch-pruning")
        if self.config.target.latency is not None:
            missing = RUNTIMES.load(context.target.runtime)().missing()
            if missing:
                raise EnvironmentMissing(
                    f"prune to a latency: the runtime {context.target.runtime} cannot run here: {missing}"
                )

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.pruning.apply import apply
        from deploycompress.pruning.costs import count
        from deploycompress.pruning.discovery import producing_layers

        module = checkpoint.load(inputs["source"][0].path, context.model)
        before = dict(producing_layers(module))
        plan = self._plan(module, workdir, context)
        apply(module, plan.groups, plan.kept)
        checkpoint.save(module, workdir / "model", context.model)
        write_json(workdir / KEPT, {"schema": 1, "kept": {id: c.tolist() for id, c in plan.kept.items()}})
        metrics = _shares(count(module, context.model), plan.original) | _validated(module, context)
        if "latency" in plan.allocated.cost:
            metrics |= _latency(plan)
        context.emit(Event("decision", "pruned", metrics))
        widths = [
            {"layer": layer, "before": before[layer], "after": after}
            for layer, after in producing_layers(module)
        ]
        return Outcome(
            (Artifact.of("", "checkpoint", workdir / "model"),),
            metrics,
            notes=(*_notes(plan.unpruned), *_outcome_notes(plan)),
            details={
                "widths": widths,
                "unpruned": [{"layer": u.layer, "reason": u.reason} for u in plan.unpruned],
                "align": plan.align,
                **({"latency": plan.figures} if plan.figures else {}),
                "reached": plan.allocated.reached,
            },
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The checkpoint, loaded again, gives what the unpruned model gives with the same channels masked."""
        import torch

        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint
        from deploycompress.model.parity import compare, to_numpy
        from deploycompress.pruning.apply import apply
        from deploycompress.pruning.discovery import trace_groups
        from deploycompress.pruning.masked import masked

        pruned_path = outcome.artifacts[0].path
        document = read_json(pruned_path.parent / KEPT)
        kept = {id: torch.tensor(channels) for id, channels in document["kept"].items()}
        unpruned = checkpoint.load(inputs["source"][0].path, context.model)
        groups = [g for g in trace_groups(unpruned, context.model, self.config.exclude)[0] if g.id in kept]
        reference = masked(unpruned, groups, kept)
        apply(unpruned, groups, kept)
        loaded = checkpoint.load(pruned_path, context.model)
        figures = {"masked_relative": 0.0, "checkpoint_relative": 0.0}
        for feed in parity_feeds(context.model, context.data.loader("val")):
            with torch.no_grad():
                candidate = to_numpy(context.model.call(loaded, feed))
                others = {"masked_relative": reference, "checkpoint_relative": unpruned}
                for name, other in others.items():
                    expected = to_numpy(context.model.call(other, feed))
                    figures[name] = max(figures[name], compare(expected, candidate).relative)
        context.emit(Event("parity", "pruned equals masked, and its checkpoint loads", figures))
        for name, what in (
            ("masked_relative", "the unpruned model with the same channels masked"),
            ("checkpoint_relative", "what was saved"),
        ):
            if figures[name] > TOLERANCE:
                raise StageFailed(
                    f"the pruned model differs from {what} by {figures[name]:.2g} of the largest output, expected at "
                    f"most {TOLERANCE:g}; leave the layers at fault out with exclude, and report this"
                )
        return figures

    # ------------------------------------------------------------ the parts of a run

    def _plan(self, module: nn.Module, workdir: Path, context: RunContext) -> Plan:
        """Which channels stay; shares are of the unpruned model, also where this is not the first pruning."""
        from deploycompress.pruning.latency.bench import Bench, Place
        from deploycompress.pruning.latency.planning import plan_by_measuring
        from deploycompress.pruning.planning import Request, plan_by_counting

        target = self.config.target.rehearsed() if context.rehearsal else self.config.target
        default = "global" if self.config.target.latency is None else "latency"
        request = Request(
            module,
            context.model,
            target,
            ALLOCATIONS.load(self.config.allocation or default)(),
            None if self.config.align == "auto" else int(self.config.align),
            self.config.exclude,
            self.config.on_unreachable,
            lambda groups, worth: self._scores(module, groups, worth, context),
        )
        if target.latency is None:
            return plan_by_counting(request)
        with tempfile.TemporaryDirectory(dir=workdir, prefix="plans-") as folder:
            place = Place.of(context.target)
            return plan_by_measuring(request, Bench(place, context.store, Path(folder), context.emit))

    def _scores(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        worth: Mapping[str, float],
        context: RunContext,
    ) -> dict[str, Tensor]:
        from deploycompress.pruning.scores import score
        from deploycompress.recovery.training import device

        if not groups:
            return {}
        criterion = self._make_criterion()
        batches = self._batches(criterion, context)
        module.to(device())
        scores = score(criterion, module, groups, batches, context.task, context.model.call, worth)
        module.to("cpu")
        return scores

    def _make_criterion(self) -> Criterion:
        name, options = _criterion(self.config.criterion)
        try:
            criterion: Criterion = CRITERIA.load(name)(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"prune.criterion {name} could not be made: {error}") from error
        return criterion

    def _batches(self, criterion: Criterion, context: RunContext) -> Iterator[Batch]:
        """Training samples under the evaluation transform, every class in its share."""
        if not criterion.needs_data:
            return
        most = REHEARSAL_BATCHES if context.rehearsal else self.config.batches
        for batch in islice(context.data.loader("calibration"), most):
            if context.stopping():
                return
            yield batch


def _criterion(value: str | Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """``taylor``, or ``{magnitude: {norm: l1}}``. Raises ValueError for more than one name."""
    if isinstance(value, str):
        return value, {}
    if len(value) != 1:
        raise ValueError("expected one criterion: a name, or {name: {option: value}}")
    return next(iter(value.items()))


def _shares(cost: Cost, original: Cost) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in ("macs", "params"):
        figures |= {name: cost[name], f"{name}_ratio": cost[name] / max(1.0, original[name])}
    return figures


def _latency(plan: Plan) -> dict[str, float]:
    """As it was measured with untrained weights, beside the unpruned model."""
    latency_ms, unpruned_ms = plan.allocated.cost["latency"], plan.original["latency"]
    return {"latency_ms": latency_ms, "latency_ratio": latency_ms / unpruned_ms}


def _validated(module: nn.Module, context: RunContext) -> dict[str, float]:
    """The task's metrics before any recovery."""
    from deploycompress.recovery.evaluation import evaluate

    figures, _ = evaluate(module, context.model, context.data.loader("val"), context.task)
    return {f"val_{name}": value for name, value in figures.items()}


def _notes(unpruned: Sequence[Unpruned]) -> Iterator[Note]:
    """One for each reason: a model may have a hundred layers of the same kind."""
    counts = Counter(u.reason for u in unpruned)
    for reason, count in counts.items():
        layers = [u.layer for u in unpruned if u.reason == reason]
        others = f" (and {count - 1} more such layers)" if count > 1 else ""
        yield Note("left_whole", f"{reason}{others}", layers[0])


def _outcome_notes(plan: Plan) -> Iterator[Note]:
    yield from plan.notes
    if not plan.allocated.reached:
        yield Note(
            "warning", f"the target is not reached: the least that can be had is {plan.allocated.shortfall}"
        )
    elif not plan.kept:
        yield Note("decision", "nothing was pruned: the model meets its target as it is")
