"""The planner's first step: the model is built, its weights are loaded, and a batch of each split goes through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploycompress.artifact import Artifact, digest_file
from deploycompress.config.base import StrictModel
from deploycompress.config.quantities import Level, Points
from deploycompress.contracts import (
    Batch,
    Event,
    Inputs,
    Loader,
    Note,
    Outcome,
    Outputs,
    Ref,
    RunContext,
    Stage,
)
from deploycompress.errors import ConfigError, DeployCompressError

if TYPE_CHECKING:
    from torch import nn


class InitialModel(Stage):
    """Fails with the place and the remedy before anything is trained; its digests are in every later key."""

    accepts = frozenset()
    produces = frozenset({"checkpoint"})
    libraries = ("torch",)

    class Config(StrictModel):
        weights: Path | None = None
        expect: dict[str, Level] = {}
        tolerance: Points | None = None

    def inputs(self) -> Mapping[str, Ref]:
        return {}

    def requires(self, context: RunContext) -> None:
        weights = self.config.weights
        if weights is not None and not weights.is_file():
            raise ConfigError(f"model.weights: {weights} does not exist")

    def run(self, inputs: Inputs, workdir: Path, context: RunContext) -> Outcome:
        from deploycompress.model import checkpoint
        from deploycompress.model.architecture import named_tensors
        from deploycompress.model.source import load_weights
        from deploycompress.model.weights import first_nonfinite
        from deploycompress.pruning.costs import count
        from deploycompress.recovery.evaluation import primary_of
        from deploycompress.recovery.given import held_against, validated

        module = context.model.build()
        if self.config.weights is not None:
            how = load_weights(module, self.config.weights)
            context.emit(Event("decision", f"weights from {self.config.weights.name}: read {how}"))
        bad = first_nonfinite((name, tensor) for name, tensor, _ in named_tensors(module))
        if bad is not None:
            raise ConfigError(f"model.build: the untrained model is not sound: {bad}")
        _check_batch(module, "train", context.data.loader("train", epoch=0), context)
        _check_batch(module, "val", context.data.loader("val"), context)
        # Also without weights: labels that do not fit, or that define no metric, are found before an epoch is paid for.
        found = validated(module, self.config.weights, context, anew=bool(self.config.expect))
        notes: tuple[Note, ...] = ()
        if not context.rehearsal:
            primary_of(found.metrics, context.task, "val")
            notes = tuple(held_against(found, self.config.expect, self.config.tolerance, context.task))
        given = self.config.weights is not None
        reached = {f"val_{name}": value for name, value in found.metrics.items()} if given else {}
        checkpoint.save(module, workdir / "model", context.model)
        cost = count(module, context.model)
        figures = {name: cost[name] for name in ("params", "macs")}
        context.emit(
            Event("decision", "the model builds, and a batch of train and val goes through it", figures)
        )
        return Outcome(
            (Artifact.of("", "checkpoint", workdir / "model"),),
            figures | reached,
            notes=notes,
            details={
                "digests": {"model": context.model.digest, "data": context.data.digest},
                "primary": asdict(context.task.primary),
                **figures,
                **_given(self.config.weights),
            },
        )


def _given(weights: Path | None) -> dict[str, Any]:
    return {} if weights is None else {"weights": {"name": weights.name, "sha256": digest_file(weights)}}


def _check_batch(module: nn.Module, split: str, loader: Loader, context: RunContext) -> None:
    """The first batch of a split through model and task. Raises ConfigError with shapes and reason."""
    import torch

    batch: Batch | None = next(iter(loader), None)
    if batch is None or batch.size == 0:
        raise ConfigError(f"data: the {split} split is empty; look at data.source and data.root")
    received = ", ".join(f"{name} {list(t.shape)}" for name, t in batch.inputs.items())
    try:
        with torch.no_grad():
            outputs = Outputs(context.model.call(module, batch.inputs))
    except DeployCompressError:
        raise
    except Exception as error:
        declared = ", ".join(f"{n} [{', '.join(map(str, s.shape))}]" for n, s in context.model.inputs.items())
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ConfigError(
            f"model: its forward fails on the first {split} batch: {type(error).__name__}: {reason}. "
            f"Received {received}; model.inputs declares {declared}: change model.inputs, model.args or the data"
        ) from error
    for name, tensor in outputs.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"model: output {name} has NaN or infinite values on the first {split} batch ({received}): "
                "look at model.weights and at how the data are scaled"
            )
    if split != "train" or batch.targets is not None:  # a distillation may learn from unlabelled samples
        context.task.check(outputs, batch)
