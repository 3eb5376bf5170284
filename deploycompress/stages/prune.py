"""The prune stage: channels that matter least are cut out until the model meets its target."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from deploycompress.artifact import Artifact
from deploycompress.config.base import StrictModel
from deploycompress.config.wording import unknown
from deploycompress.contracts import Batch, Criterion, Event, Inputs, Outcome, RunContext, Stage
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed
from deploycompress.pruning.target import Target
from deploycompress.registry import ALLOCATIONS, CRITERIA, RUNTIMES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploycompress.pruning.blocks import Block
    from deploycompress.pruning.groups import ChannelGroup
    from deploycompress.pruning.losses import Losses
    from deploycompress.pruning.planning import Plan, ToLosses
    from deploycompress.recovery.repair import Repaired

OUTPUTS = "outputs.npz"  # what the model gave before it was saved
REPAIR_BATCHES = 16  # of calibration to fit on, and of validation to decide by
REHEARSAL_BATCHES = 2
MEASURED_PRECISIONS = ("fp32", "int8")  # that an unpruned and untrained model can be put into
TOLERANCE = 1e-5  # of max|y|: kernels round otherwise where loaded weights lie otherwise in memory


class Prune(Stage):
    """Structured channel pruning over dependency groups, on an aligned grid of widths."""

    accepts = frozenset({"checkpoint"})
    produces = frozenset({"checkpoint"})
    version = 2
    libraries = ("torch", "numpy", "scipy")
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
        blocks: bool = Field(
            True,
            description="Whether whole residual blocks and transformer layers may go, where the allocation can (latency)",
        )
        compensate: bool = Field(
            True,
            description="Fit what reads pruned channels by least squares, where the validation loss falls by it",
        )
        on_unreachable: Literal["fail", "best"] = Field(
            "fail", description="best: take the nearest that can be had, with a warning"
        )

        @field_validator("criterion")
        @classmethod
        def _criterion_can_be_made(cls, value: str | dict[str, dict[str, Any]]) -> Any:
            name, options = _criterion(value)
            if name in CRITERIA:  # another name is the reader's to refuse, or the user's own
                made = CRITERIA.load(name)
                known = list(signature(made).parameters)
                for option in options:
                    if option not in known:
                        raise ValueError(unknown(f"option of {name}", option, known))
                made(**options)
            return value

    def reads(self) -> frozenset[str]:
        return frozenset({"target"}) if self.config.target.latency is not None else frozenset()

    def depends(self, context: RunContext) -> Mapping[str, Any]:
        """For a latency the machine that it is measured on."""
        if self.config.target.latency is None:
            return {}
        from deploycompress.pruning.latency.bench import Place

        return {"place": Place.of(context.target, context.devices).key}

    def requires(self, context: RunContext) -> None:
        if self.config.target.latency is not None:
            runtime, precision = RUNTIMES.load(context.target.runtime), context.target.precision
            if "onnx" not in runtime.accepts:
                raise ConfigError(
                    f"prune to a latency measures ONNX files, and target.runtime {context.target.runtime} opens "
                    f"{', '.join(sorted(runtime.accepts))}; choose a runtime that opens onnx, or a target of macs"
                )
            if precision not in MEASURED_PRECISIONS:
                raise ConfigError(
                    f"prune to a latency measures models in {' or '.join(MEASURED_PRECISIONS)}; received "
                    f"target.precision {precision}: choose one of them, or a target of macs"
                )
            missing = runtime().missing()
            if missing:
                raise EnvironmentMissing(
                    f"prune to a latency: the runtime {context.target.runtime} cannot run here: {missing}"
                )

    def inexact(self, context: RunContext) -> str | None:
        return "widths are chosen by measured latencies" if self.config.target.latency else None

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint
        from deploycompress.model.build_name import build_of
        from deploycompress.model.recorded import record_outputs
        from deploycompress.pruning.apply import apply
        from deploycompress.pruning.costs import count
        from deploycompress.pruning.discovery import producing_layers
        from deploycompress.pruning.excluded import require_layers
        from deploycompress.pruning.outcome import apart_from_masked, plan_notes, shares
        from deploycompress.recovery.evaluation import evaluate

        module = checkpoint.load(inputs["source"][0].path, context.model)
        if self.config.exclude:  # of the whole network: an earlier step may have taken layers out
            whole_network = context.model.named(build_of(module)).build()
            require_layers(self.config.exclude, whole_network, "prune.exclude")
        before = dict(producing_layers(module))
        plan = self._plan(module, workdir, context)
        unpruned = copy.deepcopy(module)
        apply(module, plan.groups, plan.kept, plan.removed)
        feeds = parity_feeds(context.model, context.data.loader("val"))
        apart = apart_from_masked(module, unpruned, plan, context.model, feeds)
        context.emit(Event("parity", "pruned equals masked", {"masked_relative": apart}))
        metrics = {"masked_relative": apart}
        after = dict(producing_layers(module))
        metrics |= shares(count(module, context.model), plan)
        notes = list(plan_notes(plan))
        if self.config.compensate and (plan.kept or plan.removed):
            repaired = self._repair(module, unpruned, plan, context)
            module = repaired.module
            notes += repaired.notes
            losses = zip(("val_loss_pruned", "val_loss_repaired"), repaired.losses, strict=True)
            metrics |= {name: loss for name, loss in losses if isfinite(loss)}
        with _on_device(module, seed=context.seed):
            figures, _ = evaluate(module, context.model, context.data.loader("val"), context.task)
        metrics |= {f"val_{name}": value for name, value in figures.items()}
        done = "pruned" if plan.kept or plan.removed else "nothing was pruned"
        context.emit(Event("decision", done, metrics))
        checkpoint.save(module, workdir / "model", context.model)
        record_outputs(module, context.model, feeds, workdir / OUTPUTS)
        return Outcome(
            (Artifact.of("", "checkpoint", workdir / "model"),),
            metrics,
            notes=tuple(notes),
            details={
                "widths": [
                    {"layer": layer, "before": width, "after": after.get(layer, 0)}
                    for layer, width in before.items()
                ],
                "removed": [block.id for block in plan.removed],
                "unpruned": [{"layer": u.layer, "reason": u.reason} for u in plan.unpruned],
                "align": plan.align,
                **({"latency": plan.figures} if plan.figures else {}),
                "reached": plan.allocated.reached,
            },
        )

    def ensures(self, inputs: Inputs, outcome: Outcome, context: RunContext) -> Mapping[str, float]:
        """The checkpoint, loaded again, gives what the model gave before it was saved."""
        from deploycompress.graph.feeds import parity_feeds
        from deploycompress.model import checkpoint
        from deploycompress.model.recorded import apart_from_record

        path = outcome.artifacts[0].path
        loaded = checkpoint.load(path, context.model)
        feeds = parity_feeds(context.model, context.data.loader("val"))
        apart = apart_from_record(loaded, context.model, feeds, path.parent / OUTPUTS)
        context.emit(Event("parity", "its checkpoint loads", {"checkpoint_relative": apart}))
        if apart > TOLERANCE:
            raise StageFailed(
                f"the checkpoint, loaded again, differs from the pruned model by {apart:.2g} of the largest output, "
                f"expected at most {TOLERANCE:g}; please report this"
            )
        return {"checkpoint_relative": apart}

    # ------------------------------------------------------------ the parts of a run

    def _plan(self, module: nn.Module, workdir: Path, context: RunContext) -> Plan:
        """Which channels stay; shares are of the unpruned model, also where this is not the first pruning."""
        from deploycompress.model.build_name import build_of
        from deploycompress.pruning.latency.bench import Bench, Place
        from deploycompress.pruning.latency.planning import plan_by_measuring
        from deploycompress.pruning.planning import Request, plan_by_counting, require_counted

        target = self.config.target
        default = "global" if self.config.target.latency is None else "latency"
        request = Request(
            module,
            context.model.named(build_of(module)),
            target,
            ALLOCATIONS.load(self.config.allocation or default)(),
            None if self.config.align == "auto" else int(self.config.align),
            self.config.exclude,
            self.config.on_unreachable,
            lambda groups, worth: self._scores(module, groups, worth, context),
            self._to_losses(module, context),
            self.config.blocks,
        )
        if target.latency is None:
            return plan_by_counting(request)
        require_counted(request)
        if context.rehearsal:  # MACs stand in for the latency, and may not get as low
            return plan_by_counting(replace(request, target=target.rehearsed(), on_unreachable="best"))
        with tempfile.TemporaryDirectory(dir=workdir, prefix="plans-") as folder:
            place = Place.of(context.target, context.devices)
            return plan_by_measuring(request, Bench(place, context.store, Path(folder), context.emit))

    def _scores(
        self,
        module: nn.Module,
        groups: Sequence[ChannelGroup],
        worth: Mapping[str, float],
        context: RunContext,
    ) -> dict[str, Tensor]:
        from deploycompress.pruning.scores import score

        if not groups:
            return {}
        criterion = self._make_criterion()
        batches = self._batches(criterion, context)
        subject = copy.deepcopy(module)  # a network may keep what it computed, with its gradients
        with _on_device(subject, seed=context.seed):
            return score(criterion, subject, groups, batches, context.task, context.model.call, worth)

    def _to_losses(self, module: nn.Module, context: RunContext) -> ToLosses:
        """Bound to the data; a rehearsal tries it too, with too few batches to recover anything."""

        def progress(done: float, message: str) -> None:
            context.emit(Event("progress", message, done=done))

        def to_losses(
            groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], blocks: Sequence[Block]
        ) -> Losses:
            from deploycompress.pruning.effort import BATCHES
            from deploycompress.pruning.losses import in_loss

            batches = list(islice(self._calibration(context), BATCHES))
            said = f"trying what each of {len(groups) + len(blocks)} groups and blocks costs the loss"
            context.emit(Event("decision", said))
            with _on_device(module, seed=context.seed):
                found = in_loss(
                    module, groups, scores, blocks, batches, context.task, context.model, progress
                )

            def on_device(widths: Mapping[str, int]) -> float:
                with _on_device(module, seed=context.seed):
                    return found.of_plan(widths)

            return replace(found, of_plan=on_device)

        return to_losses

    def _repair(self, pruned: nn.Module, unpruned: nn.Module, plan: Plan, context: RunContext) -> Repaired:
        from deploycompress.recovery.repair import repair

        with _on_device(pruned, unpruned, seed=context.seed):
            repaired = repair(
                pruned,
                unpruned,
                plan.groups,
                plan.kept,
                list(islice(self._calibration(context), REPAIR_BATCHES)),
                list(islice(context.data.loader("val"), REPAIR_BATCHES)),
                context.task,
                context.model,
            )
            repaired.module.to("cpu")
        return repaired

    def _make_criterion(self) -> Criterion:
        name, options = _criterion(self.config.criterion)
        try:
            criterion: Criterion = CRITERIA.load(name)(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"prune.criterion {name} could not be made: {error}") from error
        return criterion

    def _batches(self, criterion: Criterion, context: RunContext) -> Iterator[Batch]:
        """Training samples under the evaluation transform, every class in its share."""
        if criterion.needs_data:
            yield from self._calibration(context)

    def _calibration(self, context: RunContext) -> Iterator[Batch]:
        most = REHEARSAL_BATCHES if context.rehearsal else self.config.batches
        for batch in islice(context.data.loader("calibration"), most):
            if context.stopping():
                return
            yield batch


@contextmanager
def _on_device(*modules: nn.Module, seed: int) -> Iterator[None]:
    """The networks are where training would put them, every number the same in each run; back on the host afterwards."""
    import torch

    from deploycompress.recovery.determinism import deterministic
    from deploycompress.recovery.training import device

    for module in modules:
        module.to(device())
    with deterministic(seed):
        yield
    for module in modules:
        module.to("cpu")
    if device().type == "cuda":
        torch.cuda.empty_cache()  # for the process that measures on it next


def _criterion(value: str | Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """``taylor``, or ``{magnitude: {norm: l1}}``. Raises ValueError for more than one name."""
    if isinstance(value, str):
        return value, {}
    if len(value) != 1:
        raise ValueError("expected one criterion: a name, or {name: {option: value}}")
    return next(iter(value.items()))
